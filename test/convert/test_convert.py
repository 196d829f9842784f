#!/usr/bin/env python3
"""tools/convert, on small pieces in the layouts of the public ones: TAP on standard output.

The model that comes out must give the logits that the original gave for the same weights.  Needs
PyTorch, which writes the pieces, and build/mmgpt-engine; test/convert/run looks for both.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings

import numpy
import torch

import make_pieces as make

CASES = ["vision_one_round", "two_images", "language_only", "text_before_image_attend_previous"]
TOLERANCE = 2e-4
# golden/model-a has smaller heads than the public models, which no file says
HEADS = ["--set", "vision.heads=4", "--set", "perceiver.heads=4", "--set", "perceiver.dim_head=16",
         "--set", "cross_attention.heads=4", "--set", "cross_attention.dim_head=16"]
results = []


def check(name, good, why=""):
    results.append(bool(good))
    print(f"{'ok' if good else 'not ok'} {len(results)} - {name}", flush=True)
    if not good:
        print("\n".join(f"# {line}" for line in str(why).splitlines()[-20:]), flush=True)


def convert(output, llama, flamingo, clip, *options):
    """Run the converter; its exit status and what it said."""
    done = subprocess.run(
        [sys.executable, "tools/convert", "--llama", llama, "--flamingo", flamingo, "--clip", clip, "-o", output, *HEADS,
         *options], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def logits(model, case, values, *options):
    """The engine's logits of a golden case."""
    with tempfile.TemporaryDirectory() as work:
        images = []
        for name in case["images"] or []:
            numpy.save(f"{work}/{name}.npy", values["pixels." + name])
            images += ["--pixels", f"{work}/{name}.npy"]
        ids = " ".join(str(i) for i in values[case["name"] + ".ids"])
        subprocess.run(["build/mmgpt-engine", "forward", model, "--ids", ids, *images, "--threads", "1", "-o",
                        f"{work}/logits.npy", "--attend-previous", "1" if case.get("attend_previous") else "0", *options],
                       check=True, capture_output=True, text=True)
        return numpy.load(f"{work}/logits.npy")


def worst_difference(model, columns, *options):
    """Of the engine's logits from the original's, over the cases; the first columns only."""
    cases, values = make.golden_cases()
    differences = []
    for case in cases:
        if case["name"] in CASES:
            got = logits(model, case, values, *options)[values[case["name"] + ".positions"]]
            differences.append(float(abs(got - values[case["name"] + ".logits"])[:, :columns].max()))
    return max(differences)


def worst_lora_difference(model, columns, *options):
    cases, values = make.golden_cases()
    expected = make.load_safetensors(f"{make.GOLDEN}/lora_forward_expected.safetensors")
    differences = []
    for case in cases:
        want = expected.get(case["name"] + ".logits_last4")
        if want is not None:
            got = logits(model, case, values, *options)[-4:]
            differences.append(float(abs(got - want.numpy())[:, :columns].max()))
    return max(differences)


def check_logits(name, found, worst):
    status, said = found
    try:
        difference = worst() if status == 0 else None
        check(name, difference is not None and difference <= TOLERANCE, difference or said)
    except subprocess.CalledProcessError as error:
        check(name, False, error.stderr)


def check_error(name, found, *words):
    status, said = found
    check(name, status == 1 and all(word in said for word in words) and "Traceback" not in said, f"{status}: {said}")


def test_layouts(work, golden, lora):
    """The same weights in every layout."""
    flamingo = make.flamingo_tensors(golden)
    make.make_llama(f"{work}/llama", {**make.llama_tensors(golden, 600),
                                      "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, 600)
    make.make_llama(f"{work}/llama-resized", make.llama_tensors(golden, 603), 603, shards=0)
    torch.save(flamingo, f"{work}/checkpoint.pt")
    torch.save({"epoch": 3, "model_state_dict": {f"module.{name}": tensor for name, tensor in flamingo.items()}},
               f"{work}/wrapped.pt")
    make.save_torchscript(make.clip_tensors(golden), f"{work}/ViT-L-14.pt")
    torch.save(make.clip_tensors(golden), f"{work}/state-dict.pt")
    torch.save(make.clip_tensors(golden), f"{work}/legacy.pt", _use_new_zipfile_serialization=False)
    make.make_huggingface_clip(f"{work}/hf-clip", make.huggingface_clip(golden))
    make.save_lora(f"{work}/lora.pt", lora)

    found = convert(f"{work}/a", f"{work}/llama", f"{work}/checkpoint.pt", f"{work}/ViT-L-14.pt", "--dtype", "f32")
    check_logits("shards, checkpoint.pt and TorchScript give the original's logits", found,
                 lambda: worst_difference(f"{work}/a", 600))
    unused = "inv_freq", "position_ids", "token_embedding.weight"
    check("the list of what was not used", all(name in found[1] for name in unused) and "gated_cross" not in found[1],
          found[1])
    head = make.load_safetensors(f"{work}/a/model.safetensors")[make.HEAD]
    check("rows that no file holds are zero, and named", not head[600:].any() and "lm_head.weight: no file holds" in found[1])
    check_logits("safetensors, a wrapped checkpoint and Hugging Face's CLIP give them, all columns", convert(
        f"{work}/b", f"{work}/llama-resized", f"{work}/wrapped.pt", f"{work}/hf-clip", "--dtype", "f32"),
        lambda: worst_difference(f"{work}/b", 603))
    a, b = (make.load_safetensors(f"{work}/{name}/model.safetensors") for name in "ab")
    check("and the same tensors", a.keys() == b.keys() == golden.keys() and
          all(torch.equal(b[name], golden[name]) for name in golden))
    for clip in ("state-dict.pt", "legacy.pt"):
        status, said = convert(f"{work}/{clip}.out", f"{work}/llama-resized", f"{work}/checkpoint.pt", f"{work}/{clip}",
                               "--dtype", "f32")
        check(f"CLIP as {clip}", status == 0 and all(
            torch.equal(tensor, golden[name]) for name, tensor in
            make.load_safetensors(f"{work}/{clip}.out/model.safetensors").items()), said)


def test_config(work):
    """config.json is that of the golden model; --set changes it."""
    with open(f"{work}/a/config.json") as stream:
        made = json.load(stream)
    with open(f"{make.GOLDEN}/config.json") as stream:
        golden = json.load(stream)
    del golden["lora"], golden["lora_merged_max_abs_diff"]
    check("config.json", made == {**golden, "history_eos": False},
          {key: made.get(key) for key in {**made, **golden} if made.get(key) != golden.get(key)})
    pieces = f"{work}/llama-resized", f"{work}/checkpoint.pt", f"{work}/hf-clip"
    status, said = convert(f"{work}/set", *pieces, "--set", "history_eos=true", "--set", 'prompts.yes_words=["Ja"]')
    info = subprocess.run(["build/mmgpt-engine", "info", f"{work}/set"], capture_output=True, text=True)
    with open(f"{work}/set/config.json") as stream:
        made = json.load(stream)
    check("--set", info.returncode == 0 and made["history_eos"] is True and made["prompts"]["yes_words"] == ["Ja"],
          said + info.stderr)
    check_error("--set of a key that is not there", convert(f"{work}/x", *pieces, "--set", "llama.foo=1"), "llama.foo")


def test_types(work, golden):
    """bf16 is rounded to nearest, ties to even; vectors stay f32."""
    pieces = f"{work}/llama-resized", f"{work}/checkpoint.pt", f"{work}/hf-clip"
    status, said = convert(f"{work}/bf16", *pieces)
    made = make.load_safetensors(f"{work}/bf16/model.safetensors")
    check("bf16 is PyTorch's rounding, vectors are f32", status == 0 and all(
        torch.equal(tensor, golden[name].to(torch.bfloat16) if tensor.dim() > 1 else golden[name])
        for name, tensor in made.items()), said)
    status, said = convert(f"{work}/f16", *pieces, "--dtype", "f16")
    check("f16", status == 0 and make.load_safetensors(f"{work}/f16/model.safetensors")[make.HEAD].equal(
        golden[make.HEAD].half()), said)
    big = {**make.flamingo_tensors(golden), "perceiver.latents": golden["perceiver.latents"] + 1e6}
    torch.save(big, f"{work}/big.pt")
    check_error("a number too large for f16", convert(f"{work}/x", pieces[0], f"{work}/big.pt", pieces[2],
                                                      "--dtype", "f16"), "perceiver.latents", "not finite in F16")
    check("nothing is left of it", not os.path.exists(f"{work}/x/model.safetensors") and not os.listdir(f"{work}/x"))


def test_lora(work, golden, lora):
    """An adapter beside the weights and merged into them."""
    pieces = f"{work}/llama", f"{work}/checkpoint.pt", f"{work}/ViT-L-14.pt"
    check_logits("the LoRA as an adapter gives the original's logits", convert(
        f"{work}/c", *pieces, "--dtype", "f32", "--lora", f"{work}/lora.pt", "--adapter-out", f"{work}/adapter"),
        lambda: worst_lora_difference(f"{work}/c", 600, "--adapter", f"{work}/adapter"))
    check_logits("merged it does so too", convert(
        f"{work}/d", *pieces, "--dtype", "f32", "--lora", f"{work}/lora.pt", "--merge-lora"),
        lambda: worst_lora_difference(f"{work}/d", 600))
    extra = {**lora, "lang_encoder.base_model.model.model.norm.weight": golden["lang_encoder.model.norm.weight"] * 2}
    make.save_lora(f"{work}/extra.pt", extra, prefix="")
    status, said = convert(f"{work}/e", *pieces, "--lora", f"{work}/extra.pt", "--adapter-out", f"{work}/adapter-e")
    made = make.load_safetensors(f"{work}/e/model.safetensors") if status == 0 else golden
    check("other weights in its file replace those of the model", "the LoRA replaces 1 tensor of" in said and torch.equal(
        made["lang_encoder.model.norm.weight"], golden["lang_encoder.model.norm.weight"] * 2), said)
    torch.save(lora, f"{work}/bare.pt")
    options = "--lora", f"{work}/bare.pt", "--adapter-out", f"{work}/adapter-x"
    check_error("an alpha that nobody said", convert(f"{work}/x", *pieces, *options), "lora_alpha", "--lora-alpha")
    status, said = convert(f"{work}/f", *pieces, *options, "--lora-alpha", "8")
    check("--lora-alpha", status == 0 and "alpha 8," in said, said)
    status, said = convert(f"{work}/g", *pieces, "--lora", f"{work}/lora.pt", "--adapter-out", f"{work}/./g")
    check("model and adapter in one directory are refused", status == 2 and "two directories" in said, said)
    half = dict(list(lora.items())[1:])
    make.save_lora(f"{work}/half.pt", half)
    check_error("half of a pair", convert(f"{work}/x", *pieces, "--lora", f"{work}/half.pt", "--merge-lora"),
                "lora_B.default.weight", "other half")
    make.save_lora(f"{work}/rank.pt", lora, rank=5)
    check_error("a rank that is not the stated one", convert(f"{work}/x", *pieces, "--lora", f"{work}/rank.pt",
                                                             "--merge-lora"), "rank 4", "lora_r = 5")


class Harmful:
    """What a pickle must never get: a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_errors(work, golden):
    """Each names the tensor, or the file."""
    pieces = f"{work}/llama", f"{work}/checkpoint.pt", f"{work}/hf-clip"
    flamingo = make.flamingo_tensors(golden)

    def with_checkpoint(tensors):
        torch.save(tensors, f"{work}/changed.pt")
        return convert(f"{work}/x", pieces[0], f"{work}/changed.pt", pieces[2])

    latents = "perceiver.layers.1.0.to_kv.weight"
    check_error("a missing tensor", with_checkpoint({k: v for k, v in flamingo.items() if k != latents}),
                f'"{latents}" is missing')
    check_error("a wrong shape", with_checkpoint({**flamingo, latents: flamingo[latents][:5]}), latents, "[5, 64], not [128, 64]")
    check_error("an unknown tensor", with_checkpoint({**flamingo, "perceiver.frame_embs": torch.ones(3)}),
                '"perceiver.frame_embs"', "not known")
    check_error("no gated blocks", with_checkpoint({k: v for k, v in flamingo.items() if "gated" not in k}), "gated")
    check_error("embeddings of another vocabulary", with_checkpoint({**flamingo, make.EMBEDDING: torch.ones(500, 96)}),
                make.EMBEDDING, "500 rows")
    added = {**flamingo, make.EMBEDDING: golden[make.EMBEDDING][600:602]}
    status, said = with_checkpoint(added)
    rows = make.load_safetensors(f"{work}/x/model.safetensors")[make.EMBEDDING].float() if status == 0 else None
    check("embeddings of the added tokens alone", status == 0 and torch.equal(
        rows[:602], golden[make.EMBEDDING][:602].bfloat16().float()) and not rows[602].any(), said)
    check_error("a directory that is not empty", convert(f"{work}/x", *pieces), "not an empty directory")
    make.make_llama(f"{work}/other", {**make.llama_tensors(golden, 600), "lm_head.weight": torch.ones(599, 96)}, 600)
    check_error("a LLaMA of another vocabulary", convert(f"{work}/y", f"{work}/other", *pieces[1:]),
                "wrong vocabulary", '"lm_head.weight"', "599 rows")
    make.make_huggingface_clip(f"{work}/gelu", make.huggingface_clip(golden), hidden_act="gelu")
    check_error("a CLIP with another activation", convert(f"{work}/y", *pieces[:2], f"{work}/gelu"), "hidden_act")
    torch.save({**flamingo, "harm": Harmful(f"{work}/harm")}, f"{work}/harm.pt")
    status, said = convert(f"{work}/y", pieces[0], f"{work}/harm.pt", pieces[2])
    check("a pickle that calls something is read, and nothing is called", status == 0 and
          not os.path.exists(f"{work}/harm"), said)
    with open(f"{work}/checkpoint.pt", "rb") as stream, open(f"{work}/cut.pt", "wb") as cut:
        cut.write(stream.read()[:20000])
    check_error("a file that was cut off", convert(f"{work}/z", pieces[0], f"{work}/cut.pt", pieces[2]), "cut.pt",
                "not all there")
    check_error("a file that is not there", convert(f"{work}/z", pieces[0], f"{work}/none.pt", pieces[2]), "none.pt")
    usage = subprocess.run([sys.executable, "tools/convert", "--llama", "x"], capture_output=True, text=True)
    check("wrong usage has status 2", usage.returncode == 2, usage.stderr)


def main():
    warnings.simplefilter("ignore", FutureWarning)      # of PyTorch, on its TorchScript
    golden = make.load_safetensors(f"{make.GOLDEN}/model.safetensors")
    lora = make.load_safetensors(f"{make.GOLDEN}/lora_forward.safetensors")
    with tempfile.TemporaryDirectory() as work:
        test_layouts(work, golden, lora)
        test_config(work)
        test_types(work, golden)
        test_lora(work, golden, lora)
        test_errors(work, golden)
    print(f"1..{len(results)}")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
