//! Segments: the Arrow IPC files that hold keys and values, and are the only truth.
//!
//! `FORMAT.md` describes every byte. A segment is written by [`writer::SegmentWriter`] (active, append-only), sealed,
//! and read by [`reader::Segment`]; [`scan`] finds the committed prefix of an active one. This room knows no index:
//! index blocks pass through it as bytes.

pub(crate) mod batch;
pub(crate) mod batches;
pub(crate) mod build;
pub(crate) mod columns;
pub(crate) mod damaged;
pub(crate) mod layout;
pub(crate) mod message;
pub(crate) mod plan;
pub(crate) mod reader;
pub(crate) mod scan;
pub(crate) mod writer;
