//! From two distributions to one token.
