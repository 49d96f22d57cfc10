//! What the tool writes: exports, values, messages and exit codes.

mod arrays;
mod codes;
mod columns;
mod left_out;
mod places;
mod values;
