"""What `adadiff.adapt` fits to a frozen transformer, and sampling with it: exit heads and uncertainty estimators."""
