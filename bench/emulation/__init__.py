"""What emulated devices are made of and used for: calibration, validation, maps, advice."""
