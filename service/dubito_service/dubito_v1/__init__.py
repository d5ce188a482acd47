"""dubito's own protocol: translators and servicers."""
