"""The run's configuration: one strict model, read from TOML, changed by `--set a.b=c`."""

from pipeline.config.load import apply_settings, load_config
from pipeline.config.model import RunConfig

__all__ = ["RunConfig", "apply_settings", "load_config"]
