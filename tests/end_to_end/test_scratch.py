import json
import pytest
from launched import *
from lorakit.training import Recipe, train

def test_scratch(tiny_distilbert_dir, tiny_bert_dir, tiny_t5_dir, tiny_llama_dir, cls_csv, ner_jsonl, summary_parquet, prompt_jsonl, tmp_path):
    T = {"seq": (tiny_distilbert_dir, "SEQ_CLS", cls_csv), "tok": (tiny_bert_dir, "TOKEN_CLS", ner_jsonl),
         "s2s": (tiny_t5_dir, "SEQ_2_SEQ_LM", summary_parquet), "clm": (tiny_llama_dir, "CAUSAL_LM", prompt_jsonl)}
    jobs = []
    for name, (m, t, d) in T.items():
        for kind, batch in (("two", 3), ("one", 6)):
            p = write_recipe(tmp_path / f"{name}_{kind}.yaml", model=m, task=t, data={"train": d, "validation_fraction": 0.22},
              lora={"r": 4, "lora_dropout": 0.0}, training={"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch, "num_train_epochs": 2, "logging_steps": 1, "learning_rate": 1e-3, "use_cpu": True, "max_grad_norm": 1.0})
            if kind == "two": jobs.append((str(p), "start"))
    worker = tmp_path / "w.py"; worker.write_text(TRAIN_ALL)
    done = torchrun(worker, json.dumps(jobs))
    print(done.stdout[-3000:], done.stderr[-6000:])
    assert done.returncode == 0
    for name in T:
        train(Recipe.load(tmp_path / f"{name}_one.yaml"))
        a, b = metric_rows(tmp_path / f"{name}_one"), metric_rows(tmp_path / f"{name}_two")
        print(name, len(a), len(b))
        for x, y in zip(a, b):
            keys = [k for k in x if isinstance(x[k], float)]
            print("  ", x["event"], x["step"], {k: (x[k], y.get(k) and abs(x[k]-y[k])) for k in keys if k.endswith(("loss","norm","accuracy"))}, set(x) ^ set(y))
