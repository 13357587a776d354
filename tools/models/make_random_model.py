"""Makes a model folder with random weights: to try layouts and speed without the real ones.

python tools/models/make_random_model.py --model_config configs/models/erlangshen_1.3b.json \
    --output_dir models/random --dtype bfloat16 num_hidden_layers=4

`--model_config` is a config.json or a folder that has one; KEY=VALUE changes it. The whole model is
never in memory. `--tokenizer_name_or_path` brings a tokenizer, without which there is none.
"""

import argparse
import json
from pathlib import Path

from minimoe_dist.corpus.tokenizing import load_tokenizer
from minimoe_dist.exit_status import ExitStatus


def main() -> None:
    """Parses the arguments and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model_config", required=True, help="config.json, or a folder with one")
    add("--output_dir", required=True, help="folder to write; one that is there is replaced")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--seed", type=int, default=0)
    add("--tokenizer_name_or_path", help="tokenizer to save beside the weights")
    add("changes", nargs="*", metavar="KEY=VALUE", help="of the configuration, as JSON values")
    given = parser.parse_args()
    path = Path(given.model_config)
    try:
        values = json.loads((path / "config.json" if path.is_dir() else path).read_text("utf-8"))
        values |= {
            key: json.loads(text) for key, _, text in (c.partition("=") for c in given.changes)
        }
        # Importing these takes seconds, and what is wrong with the arguments is found before.
        import torch

        from minimoe_dist.checkpoints.random_model import write_random_model
        from minimoe_dist.models.auto import AutoConfig

        config = AutoConfig.for_model(values.pop("model_type"), **values)
        write_random_model(config, given.output_dir, getattr(torch, given.dtype), given.seed)
        if given.tokenizer_name_or_path:
            load_tokenizer(given.tokenizer_name_or_path).save_pretrained(given.output_dir)
    except (ValueError, OSError, KeyError) as error:
        parser.exit(ExitStatus.REFUSED, f"error: {error}\n")
    print(f"{given.output_dir}: {config.model_type}, random weights in {given.dtype}")


if __name__ == "__main__":
    main()
