//! What documents weigh in memory. Parsed they take up to a hundred times the length of their text, so whatever bounds the
//! memory of many jobs counts both.

use super::{Document, JobSpec};
use serde::Serialize;
use serde_json::Value;

/// A value in an array that has grown by doubling, or one in an object with the texts of its key and itself.
const VALUE: usize = 64;
/// An array that holds anything has room for four, beside what its values weigh.
const ARRAY: usize = 128;
/// An object is a tree whose nodes have room for eleven fields each and are half full when keys come in order.
const NODE: usize = 640;
const FIELDS_OF_NODE: usize = 6;

/// About how many bytes a document takes in memory beside its text: 64 a value, 128 an array, 640 an object for every six
/// fields, empty ones nothing.
pub fn parsed_weight(document: &Document) -> usize {
    NODE * document.len().div_ceil(FIELDS_OF_NODE) + document.values().map(weight_of).sum::<usize>()
}

fn weight_of(value: &Value) -> usize {
    VALUE
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
            Value::Array(items) if items.is_empty() => 0,
            Value::Array(items) => ARRAY + items.iter().map(weight_of).sum::<usize>(),
            Value::Object(fields) => parsed_weight(fields),
        }
}

impl JobSpec {
    /// The same of a spec.
    pub fn parsed_weight(&self) -> usize {
        VALUE * (self.command.len() + 3 * self.env.len()) + parsed_weight(&self.engine)
    }
}

/// The length of a document as JSON.
pub(super) fn length(document: &impl Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // A document that could not be written was never stored; it weighs what was written of it.
    drop(serde_json::to_writer(&mut count, document));
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_weighs_what_its_values_and_objects_take() {
        for (document, weight) in [
            (json!({}), 0),
            (json!({"a": "x".repeat(1000)}), NODE + VALUE),
            (json!({"a": [], "b": {}}), NODE + 2 * VALUE),
            (json!({"a": [1, [2]]}), NODE + 2 * ARRAY + 4 * VALUE),
            (json!({"a": [{"": 0}, {"": 0}]}), 3 * NODE + ARRAY + 5 * VALUE),
            (json!({"1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1, "7": 1}), 2 * NODE + 7 * VALUE),
        ] {
            assert_eq!(parsed_weight(document.as_object().unwrap()), weight, "{document}");
        }
    }

    #[test]
    fn the_weights_are_those_of_the_values_of_today() {
        assert_eq!(2 * size_of::<Value>(), VALUE);
        assert_eq!(4 * size_of::<Value>(), ARRAY);
        let fields = 11 * (size_of::<String>() + size_of::<Value>());
        assert!((fields..fields + 32).contains(&NODE), "{fields}");
    }
}
