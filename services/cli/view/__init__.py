"""What people see of what the services answer."""
