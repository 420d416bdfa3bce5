// A client in C++, generated from the protos: what such a client must be able to do, a line of output each.
// Arguments: the addresses of scheduler and metrics, a token, and the project that it submits to.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "sihlai/logs/v1/log_service.grpc.pb.h"
#include "sihlai/metrics/v1/metrics_service.grpc.pb.h"
#include "sihlai/scheduler/v1/job_service.grpc.pb.h"

namespace conversion = sihlai::conversion::v1;
namespace logs = sihlai::logs::v1;
namespace metrics = sihlai::metrics::v1;
namespace scheduler = sihlai::scheduler::v1;

constexpr int kPointsBeforeStop = 10;

// Every call carries a token.
struct Call : grpc::ClientContext {
  explicit Call(const std::string& token) { AddMetadata("authorization", "Bearer " + token); }
};

void require(const grpc::Status& status) {
  if (status.ok()) return;
  std::cerr << status.error_code() << " " << status.error_message() << std::endl;
  std::exit(1);
}

std::string submit(scheduler::JobService::Stub& jobs, const std::string& token, const std::string& project) {
  scheduler::SubmitJobRequest request;
  request.set_parent(project);
  auto* spec = request.mutable_spec();
  spec->mutable_model()->mutable_backbone()->set_name("tiny");
  auto* head = spec->mutable_model()->add_heads();
  head->set_id("digits");
  head->set_task(conversion::TASK_MULTICLASS_CLASSIFICATION);
  spec->mutable_data()->set_height(16);
  spec->mutable_data()->set_width(16);
  spec->mutable_trainer()->set_iterations_max(100'000);
  spec->mutable_trainer()->set_validations(1);

  Call call(token);
  scheduler::SubmitJobResponse answer;
  require(jobs.SubmitJob(&call, request, &answer));
  std::cout << "submitted " << scheduler::JobState_Name(answer.job().state()) << std::endl;
  return answer.job().name();
}

// A broken connection would go on from `cursor`; a stream that ends without `ended` was broken.
struct Tail {
  long lines = 0;
  logs::LogEnded ended;

  void follow(logs::LogService::Stub& stub, const std::string& token, const std::string& job) {
    logs::TailLogsRequest request;
    request.set_job(job);
    request.set_follow(true);
    Call call(token);
    logs::TailLogsResponse answer;
    auto stream = stub.TailLogs(&call, request);
    while (stream->Read(&answer)) {
      lines += answer.batch().lines_size();
      if (answer.has_ended()) ended = answer.ended();
    }
    require(stream->Finish());
  }
};

void stop(scheduler::JobService::Stub& jobs, const std::string& token, const std::string& job) {
  scheduler::StopJobRequest request;
  request.set_name(job);
  request.set_reason("a client's");
  Call call(token);
  scheduler::StopJobResponse answer;
  require(jobs.StopJob(&call, request, &answer));
  std::cout << "stopped " << scheduler::JobState_Name(answer.job().state()) << std::endl;
}

// The job is stopped by who sees its tenth point.
void watch(metrics::MetricsService::Stub& series, scheduler::JobService::Stub& jobs, const std::string& token,
           const std::string& job) {
  metrics::WatchMetricsRequest request;
  request.set_job(job);
  request.mutable_selector()->add_names("train/loss");
  Call call(token);
  metrics::WatchMetricsResponse answer;
  long points = 0;
  bool stopping = false;
  auto stream = series.WatchMetrics(&call, request);
  while (stream->Read(&answer)) {
    for (const auto& columns : answer.points().columns()) points += columns.values_size();
    if (points >= kPointsBeforeStop && !stopping) {
      stopping = true;
      stop(jobs, token, job);
    }
    if (!answer.has_ended()) continue;
    std::cout << "points " << points << "\nmetrics " << scheduler::JobState_Name(answer.ended().state())
              << (answer.ended().points_complete() ? " complete" : " incomplete") << std::endl;
  }
  require(stream->Finish());
}

// The reason of an error, out of google.rpc.ErrorInfo.
google::rpc::ErrorInfo info_of(const grpc::Status& status) {
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  google::rpc::ErrorInfo info;
  for (const auto& detail : details.details())
    if (detail.UnpackTo(&info)) break;
  return info;
}

void refused(scheduler::JobService::Stub& jobs, const std::string& token, const std::string& project) {
  scheduler::GetJobRequest request;
  request.set_name(project + "/jobs/none");
  Call call(token);
  scheduler::GetJobResponse answer;
  const auto status = jobs.GetJob(&call, request, &answer);
  const auto info = info_of(status);
  std::cout << "refused " << (status.error_code() == grpc::StatusCode::NOT_FOUND ? "NotFound " : "otherwise ")
            << info.domain() << " " << info.reason() << " " << info.metadata().at("name") << std::endl;
}

int main(int argc, char** argv) {
  const std::string token = argv[3], project = argv[4];
  const auto to_metrics = grpc::CreateChannel(argv[2], grpc::InsecureChannelCredentials());
  const auto jobs = scheduler::JobService::NewStub(grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  const auto log = logs::LogService::NewStub(to_metrics);
  const auto series = metrics::MetricsService::NewStub(to_metrics);

  const auto job = submit(*jobs, token, project);
  Tail tail;
  std::thread tailing([&] { tail.follow(*log, token, job); });
  watch(*series, *jobs, token, job);
  tailing.join();
  std::cout << "lines " << tail.lines << "\nlog " << scheduler::JobState_Name(tail.ended.state())
            << (tail.ended.logs_complete() ? " complete" : " incomplete") << std::endl;
  refused(*jobs, token, project);
}
