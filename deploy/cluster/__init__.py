"""Installs, upgrades and removes Astrolabe on many hosts, over ssh, from one file (cluster.toml)."""
