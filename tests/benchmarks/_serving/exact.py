"""The real inference process in f32, also where the CPU has bf16."""

from __future__ import annotations

from app import logs
from app.settings import current
from app.storage import Storage
from worker.inference import server
from worker.inference.model_cache import ModelCache

if __name__ == "__main__":
    settings = current()
    logs.configure(settings.log_level, process="inference")
    files = Storage(settings.data_dir)
    server.run_process(settings, lambda: ModelCache(files, "cpu", 1, settings.threads, precision="f32"))
