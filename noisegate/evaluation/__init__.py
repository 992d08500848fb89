"""Metrics, sweeps and reports about trained models."""
