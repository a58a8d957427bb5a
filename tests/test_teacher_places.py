"""Teachers that stand elsewhere than their student: spread by device "auto", or with weights left on disk."""

import torch
from conftest import prepared_rows
from transformers import AutoModelForCausalLM

from llm_finetuner.finetuner import LLMFineTuner

STEP = {"num_epochs": 1, "steps": 1, "batch_size": 4, "gradient_accumulation_steps": 1}


def loss_of(student, teacher, folder, tokenizer, **options):
    run = LLMFineTuner(student, folder)
    run.load_model("vanilla_distillation")
    run.load_teacher_model(teacher, tokenizer=None if isinstance(teacher, str) else tokenizer, **options)
    run.setup_vanilla_distillation(alpha=0.0)
    return run.train(prepared_rows(4, len(tokenizer)), **STEP).history[0]["forward_kl"]


def test_a_teacher_on_disk_or_spread_says_the_same(tmp_path, student_folder, teacher_folder, tokenizer):
    want = loss_of(student_folder, teacher_folder, tmp_path / "here", tokenizer)
    assert loss_of(student_folder, teacher_folder, tmp_path / "auto", tokenizer, device="auto") == want
    parts = {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "cpu", "lm_head": "disk"}
    away = AutoModelForCausalLM.from_pretrained(
        teacher_folder,
        device_map={**parts, "model.rotary_emb": "cpu"},
        offload_folder=str(tmp_path / "offload"),
        dtype=torch.float32,
    )
    assert away.get_output_embeddings().weight.device.type == "meta"
    assert loss_of(student_folder, away, tmp_path / "disk", tokenizer, device="auto") == want
