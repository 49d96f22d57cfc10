//! Segments: the Arrow IPC files that hold keys and values, and are the only source of truth.
//!
//! `FORMAT.md` describes every byte. A segment is written by [`writer::SegmentWriter`] (active, append-only), sealed,
//! and read by [`reader::Segment`]; [`scan`] finds the committed prefix of an active one. This module does not know the
//! index: index blocks are opaque bytes.

pub(crate) mod batch;
pub(crate) mod batches;
pub(crate) mod begun;
pub(crate) mod build;
pub(crate) mod columns;
pub(crate) mod damaged;
pub(crate) mod layout;
pub(crate) mod message;
pub(crate) mod plan;
pub(crate) mod reader;
mod row_crcs;
pub(crate) mod scan;
pub(crate) mod writer;
