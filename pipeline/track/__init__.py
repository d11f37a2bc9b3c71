"""Trackers: TensorBoard, Weights & Biases, MLflow and Trackio show the numbers of committed rounds."""
