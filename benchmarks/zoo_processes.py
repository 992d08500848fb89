"""A measurement in a process of its own, under a limit of time.

Authors
 * The noisegate developers, 2026
"""

import multiprocessing
import os
import resource
import signal
import traceback
from pathlib import Path


def _send(pipe, seconds, function, args):
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    silent = os.open(os.devnull, os.O_WRONLY)  # torch prints whole graphs
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        answer = function(*args)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        text = " ".join(str(error).split())
        answer = {"failed": f"{type(error).__name__}: {text} ({where})"}
    pipe.send(answer)


def limited(seconds, function, *args):
    """What a function returns in a process of its own.

    Arguments
    ---------
    seconds : int
        Limit of processor time.
    function : callable
        Returns a dict.
    *args : tuple
        Its arguments.

    Returns
    -------
    dict
        Or ``{"failed": reason}``.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_send, args=(theirs, seconds, function, args)
    )
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        if -process.exitcode in (signal.SIGXCPU, signal.SIGKILL):
            return {"failed": f"no result in {seconds} s"}
        return {"failed": f"the process ended with {process.exitcode}"}
    finally:
        process.join()
