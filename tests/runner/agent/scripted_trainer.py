"""A trainer without torch: a process that speaks runner/report.py and does what the job's labels say."""

TRAINER_HEAD = """
import argparse, json, os, pathlib, signal, subprocess, sys, threading, time
from runner.report import *
unfit = pathlib.Path(__file__).with_name("unfit")  # written by a test that wants a machine that cannot train
if unfit.exists():
    sys.exit(unfit.read_text())
if "--check" in sys.argv:
    sys.exit(0)
parser = argparse.ArgumentParser()
parser.add_argument("--report-fd", type=int)
parser.add_argument("--attempt-file", default="")
arguments = parser.parse_args()
writer = ReportWriter(arguments.report_fd)
now = lambda: time.time_ns() // 1000
commands, ends_with_agent = [], True
def listen():
    for line in sys.stdin:
        commands.append(line.strip())
    if ends_with_agent:
        os._exit(3)
threading.Thread(target=listen, daemon=True).start()
def wait_for_command(seconds=20):
    deadline = time.monotonic() + seconds
    while not commands and time.monotonic() < deadline:
        time.sleep(0.005)
    return commands[0]
"""

TRAINER = """
attempt = json.loads(pathlib.Path(arguments.attempt_file).read_text())
labels = attempt["spec"].get("labels", {})
does = labels.get("does", "train")
images = pathlib.Path(attempt["training"]["images"])
annotations = json.loads((pathlib.Path(attempt["training"]["heads"]["digits"]) / "annotations.json").read_text())
assert sorted(annotations) == sorted(path.name for path in images.iterdir()), "an image is missing"
iterations_max = int(attempt["spec"]["trainer"]["iterations_max"])
iteration = 0
if attempt["resume_folder"]:
    iteration = int((pathlib.Path(attempt["resume_folder"]) / "state.pt").read_text())
    print("resumed at", iteration)
def checkpoint(cause):
    folder = pathlib.Path(attempt["checkpoint_folder"]) / str(iteration)
    draft = folder.with_name(f".{iteration}")
    try:
        draft.mkdir()
        (draft / "model.safetensors").write_bytes(bytes(1000))
        (draft / "state.pt").write_text(str(iteration))
        draft.rename(folder)
    except OSError as error:
        end(Outcome.FAILED, "RUNNER_FAULT", f"the checkpoint of step {iteration} cannot be written: {error}")
    writer.write(CheckpointWritten(str(folder), iteration, cause, 0.5, False))
def end(outcome, reason, message="", unforeseen=False):
    writer.write(Ended(outcome, reason, message, iteration, unforeseen))
    sys.stdout.flush()
    os._exit(0)
if does == "fork":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
stop = threading.Event()
while iteration < iterations_max:
    iteration += 1
    writer.write(Points(iteration, now(), {"train/loss": 1 / iteration, "digits/train/loss": 0.5}))
    writer.write(Progress(iteration, iterations_max, 0.01 * (iterations_max - iteration)))
    print("step", iteration)
    if does == "crash" and iteration == 3:
        print("about to fail", file=sys.stderr)
        raise RuntimeError("the trainer is broken")
    if unfit.exists() and does == "die-unfit":
        os.kill(os.getpid(), signal.SIGSEGV)
    if unfit.exists() and does in ("break-unfit", "refuse-unfit"):
        end(Outcome.FAILED, "TRAINER_ERROR", "the loss is nan", does == "break-unfit")
    if does == "die" and iteration == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if does == "validate" and iteration % 10 == 0 and iteration < iterations_max:
        checkpoint("VALIDATION")
    if commands and does != "deaf":
        writer.write(CheckpointStarted(iteration))
        handed_back = commands[0] == COMMAND_HAND_BACK
        checkpoint("HAND_BACK" if handed_back else "STOP")
        if handed_back:
            end(Outcome.HANDED_BACK, "UNSPECIFIED")
        end(Outcome.STOPPED, "USER_STOP")
    stop.wait(float(labels.get("step-ms", "1")) / 1000)
checkpoint("FINAL")
end(Outcome.COMPLETED, "LIMIT_REACHED")
"""
