"""Configuration: one frozen tree, loaded once and handed down.

Defaults < ``syncline.yaml`` < ``syncline.<environment>.yaml`` < environment variables < command line. Relative
paths are relative to the working directory. No other module reads the environment.
"""

from syncline.config.load import DEFAULT_FILE, load_config
from syncline.config.tree import (
    ApplyConfig,
    Config,
    ControlConfig,
    LogConfig,
    LoggingConfig,
    TargetConfig,
    store_class,
)
from syncline.config.verification import RuleConfig, VerifyConfig
from syncline.nearest import hint

__all__ = [
    "DEFAULT_FILE",
    "ApplyConfig",
    "Config",
    "ControlConfig",
    "LogConfig",
    "LoggingConfig",
    "RuleConfig",
    "TargetConfig",
    "VerifyConfig",
    "hint",
    "load_config",
    "store_class",
]
