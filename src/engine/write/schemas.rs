//! The structures of rows in use.

use std::collections::HashMap;
use std::sync::Arc;

use crate::schema::RowSchema;

/// Shapes of one structure that get segments of their own. Rows of further shapes share segments in which every row has
/// its own shape.
const FIXED_SHAPES: usize = 4;

/// Row structures in use.
#[derive(Debug, Default)]
pub(crate) struct Schemas {
    interned: HashMap<RowSchema, Arc<RowSchema>>,
    /// How many shapes each structure (with its shapes taken out) has had.
    shapes: HashMap<RowSchema, usize>,
}

impl Schemas {
    /// The one instance of `schema`, or of its variant with variable shapes if it has had too many shapes.
    pub(crate) fn intern(&mut self, schema: RowSchema) -> Arc<RowSchema> {
        if let Some(known) = self.interned.get(&schema) {
            return Arc::clone(known);
        }
        let variable = schema.with_variable_shapes();
        let shapes = self.shapes.entry(variable.clone()).or_default();
        let chosen = if *shapes < FIXED_SHAPES || variable == schema { schema } else { variable };
        *shapes += 1;
        Arc::clone(self.interned.entry(chosen.clone()).or_insert_with(|| Arc::new(chosen)))
    }
}
