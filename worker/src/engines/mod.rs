//! The engines and their registry: a new engine is one file here and one line in the list.
