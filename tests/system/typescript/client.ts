// A client in TypeScript, generated from the protos: what such a client must be able to do, a line of output each.
// Arguments: the addresses of scheduler and metrics, a token, and the project that it submits to.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { ErrorInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { Task } from "./generated/sihlai/conversion/v1/task_pb.js";
import { LogService } from "./generated/sihlai/logs/v1/log_service_pb.js";
import { MetricsService } from "./generated/sihlai/metrics/v1/metrics_service_pb.js";
import { JobService } from "./generated/sihlai/scheduler/v1/job_service_pb.js";
import { JobSpecSchema } from "./generated/sihlai/scheduler/v1/job_spec_pb.js";
import { JobState } from "./generated/sihlai/scheduler/v1/job_pb.js";

const [scheduler, metrics, token, project] = process.argv.slice(2);

// Every call carries a token.
const carry: Interceptor = (next) => (request) => {
  request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};
const transportTo = (address: string) =>
  createGrpcTransport({ baseUrl: `http://${address}`, interceptors: [carry] });

const jobs = createClient(JobService, transportTo(scheduler));
const logs = createClient(LogService, transportTo(metrics));
const series = createClient(MetricsService, transportTo(metrics));

const stateName = (state: JobState) => `JOB_STATE_${JobState[state]}`;

async function submit(): Promise<string> {
  const spec = create(JobSpecSchema, {
    model: { backbone: { name: "tiny" }, heads: [{ id: "digits", task: Task.MULTICLASS_CLASSIFICATION }] },
    data: { height: 16, width: 16 },
    trainer: { iterationsMax: 100_000n, validations: 1 },
  });
  const { job } = await jobs.submitJob({ parent: project, spec, requestId: crypto.randomUUID() });
  console.log("submitted", stateName(job!.state));
  return job!.name;
}

// A broken connection would go on from `cursor`; a stream that ends without `ended` was broken.
async function tail(job: string): Promise<void> {
  let lines = 0;
  for await (const { message } of logs.tailLogs({ job, follow: true })) {
    if (message.case === "batch") lines += message.value.lines.length;
    if (message.case === "ended") {
      console.log("lines", lines);
      console.log("log", stateName(message.value.state), message.value.logsComplete ? "complete" : "incomplete");
    }
  }
}

// The job is stopped by who sees its tenth point.
async function watch(job: string): Promise<void> {
  let points = 0;
  let stopping: Promise<void> | undefined;
  for await (const { message } of series.watchMetrics({ job, selector: { names: ["train/loss"] } })) {
    if (message.case === "points") for (const columns of message.value.columns) points += columns.values.length;
    if (points >= 10) stopping ??= stop(job);
    if (message.case === "ended") {
      await stopping;
      console.log("points", points);
      console.log("metrics", stateName(message.value.state), message.value.pointsComplete ? "complete" : "incomplete");
    }
  }
}

async function stop(job: string): Promise<void> {
  const answer = await jobs.stopJob({ name: job, reason: "a client's", requestId: crypto.randomUUID() });
  console.log("stopped", stateName(answer.job!.state));
}

async function refused(): Promise<void> {
  try {
    await jobs.getJob({ name: `${project}/jobs/none` });
  } catch (error) {
    const refusal = ConnectError.from(error);
    const [info] = refusal.findDetails(ErrorInfoSchema);
    console.log("refused", Code[refusal.code], info.domain, info.reason, info.metadata.name);
  }
}

const job = await submit();
await Promise.all([tail(job), watch(job)]);
await refused();
