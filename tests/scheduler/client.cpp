// A client in C++: what a generated client must be able to do, one line of output for each thing.
#include <iostream>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "sihlai/scheduler/v1/job_service.grpc.pb.h"
#include "sihlai/scheduler/v1/project_service.grpc.pb.h"

namespace scheduler = sihlai::scheduler::v1;

// The reason of an error, out of google.rpc.ErrorInfo.
std::string reason(const grpc::Status& status) {
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  for (const auto& detail : details.details()) {
    google::rpc::ErrorInfo info;
    if (detail.UnpackTo(&info)) return info.domain() + " " + info.reason();
  }
  return "none";
}

void require(const grpc::Status& status) {
  if (status.ok()) return;
  std::cerr << status.error_message() << std::endl;
  exit(1);
}

// Every call carries a token.
void carry(grpc::ClientContext& context, const std::string& token) {
  context.AddMetadata("authorization", "Bearer " + token);
}

int main(int argc, char** argv) {
  auto channel = grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  auto projects = scheduler::ProjectService::NewStub(channel);
  auto jobs = scheduler::JobService::NewStub(channel);

  grpc::ClientContext creating;
  carry(creating, argv[2]);
  scheduler::CreateProjectRequest create;
  scheduler::CreateProjectResponse created;
  create.set_project_id("digits");
  auto* dataset = create.mutable_project()->mutable_training_dataset();
  dataset->set_uri("s3://bucket/digits");
  dataset->mutable_credentials()->mutable_s3()->set_access_key_id("key");
  dataset->mutable_credentials()->mutable_s3()->set_secret_access_key("secret");
  require(projects->CreateProject(&creating, create, &created));
  const auto& stored = created.project().training_dataset();
  std::cout << "credentials " << stored.has_credentials() << " stored " << stored.credentials_stored() << std::endl;

  grpc::ClientContext submitting;
  carry(submitting, argv[2]);
  scheduler::SubmitJobRequest submit;
  scheduler::SubmitJobResponse submitted;
  submit.set_parent(created.project().name());
  submit.set_job_id("first");
  submit.mutable_spec()->mutable_model()->add_heads()->set_task(sihlai::conversion::v1::TASK_MULTICLASS_CLASSIFICATION);
  require(jobs->SubmitJob(&submitting, submit, &submitted));
  std::cout << submitted.job().name() << " neck " << submitted.job().spec().model().neck().has_identity() << std::endl;

  grpc::ClientContext getting;
  carry(getting, argv[2]);
  scheduler::GetJobRequest get;
  scheduler::GetJobResponse got;
  get.set_name(submitted.job().name());
  require(jobs->GetJob(&getting, get, &got));
  std::cout << "position " << got.job().has_queue_position() << " " << got.job().queue_position() << std::endl;

  grpc::ClientContext watching;
  carry(watching, argv[2]);
  scheduler::WatchJobsRequest watch;
  scheduler::WatchJobsResponse seen;
  watch.set_parent("projects/-");
  auto stream = jobs->WatchJobs(&watching, watch);
  while (stream->Read(&seen) && !seen.has_caught_up()) std::cout << "watched " << seen.job().name() << std::endl;
  watching.TryCancel();

  grpc::ClientContext missing;
  carry(missing, argv[2]);
  get.set_name("projects/digits/jobs/none");
  std::cout << reason(jobs->GetJob(&missing, get, &got)) << std::endl;
}
