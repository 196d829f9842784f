"""What bench/sql needs: `pictures DIRECTORY COUNT` makes so many that differ, of the demo's; `shape DIRECTORY` a model."""
import glob
import os
import sys

import side_by_side as sides

if sys.argv[1] == "pictures":
    sides.need_modules("pillow")
    from PIL import Image

    found = [Image.open(path).convert("RGB") for kind in ("jpg", "png")
             for path in sorted(glob.glob(os.path.join(sides.ROOT, "demo", "pictures", "*." + kind)))]
    for i in range(int(sys.argv[3])):
        picture, turn = found[i % len(found)], i // len(found)
        picture.crop((turn % 8, turn // 8 % 8, picture.width - turn % 5, picture.height - turn // 5 % 5)).save(
            os.path.join(sys.argv[2], f"{i:05d}.jpg"), quality=90)
elif not os.path.exists(os.path.join(sys.argv[2], "tokenizer.model")):
    sides.need_modules("torch", "numpy")
    import torch

    import model_files
    model_files.write_decoder_1024(torch, sys.argv[2], os.path.join(sides.ROOT, "test", "golden", "tokenizer",
                                                                    "llama-style-32000.model"))
