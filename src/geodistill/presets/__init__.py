"""Settings for common cases, as TOML files beside this one."""
