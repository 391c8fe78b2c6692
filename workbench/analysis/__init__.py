"""Pure analyses of dense features: tensors in, tensors out; no file is opened, nothing is plotted, no state is kept."""
