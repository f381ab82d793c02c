"""What the three training scripts share: data, loop, clock, results. No synchronisation method lives here."""
