"""From a cut model to what runs where it is needed, see docs/deploy.md."""
