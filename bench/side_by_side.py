"""What the comparisons share: where they work, their virtual environment, runs in turns and their figures."""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENGINE = os.path.join(ROOT, "build", "mmgpt-engine")
WORK = os.path.join(ROOT, "build", "bench")


def need_modules(*names):
    """Go on in build/bench/venv, made from PyPI, where the interpreter lacks one of these packages."""
    missing = [name for name in names if importlib.util.find_spec({"pillow": "PIL"}.get(name, name)) is None]
    if not missing:
        return
    python = os.path.join(WORK, "venv", "bin", "python3")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", os.path.join(WORK, "venv")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *names], check=True)
    if sys.prefix == os.path.join(WORK, "venv"):
        sys.exit(f"{sys.argv[0]}: {', '.join(missing)} could not be installed")
    os.execv(python, [python] + sys.argv)


def prepare():
    """Build the engine and the memory test."""
    os.makedirs(WORK, exist_ok=True)
    subprocess.run(["make", "--silent", "-C", ROOT, "engine"], check=True)
    subprocess.run(["cc", "-O3", "-march=native", "-pthread", "-o", os.path.join(WORK, "memory_read"),
                    os.path.join(ROOT, "bench", "memory_read.c")], check=True)


def memory_read(threads):
    """GB/s that all threads read."""
    return float(subprocess.run([os.path.join(WORK, "memory_read"), str(threads)], check=True,
                                stdout=subprocess.PIPE).stdout)


# Starts a command from a small process: what a process had resident before exec counts as its peak, and a Python
# that has loaded PyTorch is large. Writes the wait status and the peak in kilobytes to the descriptor of its first
# argument.
LAUNCHER = """
import os, sys
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
os.write(int(sys.argv[1]), b"%d %d" % (status, usage.ru_maxrss))
"""


def run(command):
    """Standard output, seconds and peak resident bytes of a command that must succeed; messages only if it fails."""
    reader, writer = os.pipe()
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as messages:
        process = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, str(writer), *command],
                                 stdout=subprocess.PIPE, stderr=messages, pass_fds=[writer])
        seconds = time.perf_counter() - begin
        os.close(writer)
        with os.fdopen(reader) as file:
            status, kilobytes = map(int, file.read().split() or (1, 0))
        if process.returncode != 0 or status != 0:
            messages.seek(0)
            sys.stderr.write(messages.read().decode(errors="replace"))
            sys.exit(f"{sys.argv[0]}: failed: {' '.join(command)}")
    return process.stdout, seconds, kilobytes * 1024


def in_turns(rounds, sides):
    """Results [round][side] of functions that are called by turns, every second round backwards."""
    results = []
    for turn in range(rounds):
        order = list(range(len(sides))) if turn % 2 == 0 else list(range(len(sides)))[::-1]
        found = {side: sides[side]() for side in order}
        results.append([found[side] for side in range(len(sides))])
    return results


def median(values):
    """The median; of an even number of values the mean of the middle two."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(ratios):
    """"1.50 (1.40 to 1.60)": median and range."""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def result(name, weight_format, peer, unit, turns, aim, **rest):
    """One line of a results file; turns are pairs of our figure and the peer's, of which more is better."""
    ratios = [ours / theirs for ours, theirs in turns]
    return {"name": name, "format": weight_format, "peer": peer, "unit": unit, "engine": [ours for ours, _ in turns],
            "peer_figures": [theirs for _, theirs in turns],
            "ratio": {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}, "aim": aim} | rest


def write_results(path, bench, results):
    """Results as JSON, which bench/picture draws; no path, no file."""
    if path is None:
        return
    with open(path, "w") as file:
        json.dump({"bench": bench, "machine": machine(), "cores": own_cores(), "results": results}, file, indent=2)
        file.write("\n")


def tell_load(load):
    """Say how busy the machine was before the run, and warn where other work would spoil the figures."""
    print(f"load average of the last minute: {load:.2f}", flush=True)
    if load > 0.5:
        print(f"{sys.argv[0]}: warning: other processes are running; threads that wait by spinning, as OpenMP's do, "
              "suffer most from that", file=sys.stderr, flush=True)


def own_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine():
    """The processor's name, for the heading."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown processor"
