"""`sihlai demo`: `run` tells it, `screen` shows it, `witness` watches each job, `audit` writes down what was checked;
`digits`, `scenes`, `learning`, `tenth`, `conversions` and `truth` are what it shows.
"""
