"""Stands for `vllm.entrypoints.openai.api_server` in the tree of an image: the same arguments, a fake engine.

It refuses what vLLM would refuse, an argument it does not know, and tells what it was started with.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--served-model-name", nargs="+", required=True)
    parser.add_argument("--enable-auto-tool-choice", action="store_true", required=True)
    parser.add_argument("--tool-call-parser", required=True)
    parser.add_argument("--chat-template")
    parser.add_argument("--runner", choices=["pooling"])
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    given = parser.parse_args()
    assert (Path(given.model) / "config.json").is_file(), "the model is a folder"

    from vllm import fake_engine  # type: ignore[import-not-found]
    from vllm_metal import VERSION  # type: ignore[import-not-found]

    kernels = Path.home() / ".cache" / "vllm-metal" / "_paged_ops.so"
    about = {
        "version": VERSION,
        "python": sys.executable,
        "isolated": sys.flags.isolated,
        "kernels": kernels.read_text() if kernels.exists() else None,
        "offline": os.environ.get("HF_HUB_OFFLINE"),
        "arguments": sys.argv[1:],
    }
    print("stand-in " + json.dumps(about), flush=True)
    options = ["--socket", given.uds, "--model", given.served_model_name[-1], "--echo"]
    fake_engine.main(fake_engine.parse(options))


if __name__ == "__main__":
    main()
