"""From functions that run a pair to flat graphs of tensor operations: traced once, replayed ever after."""
