//! Where a schema is wrong.

use serde_json::Value;

use super::GrammarSource;

/// Most parts of a schema that are tried.
const PARTS_MAX: usize = 256;

/// Keywords that hold a schema.
const OF_ONE: [&str; 8] =
    ["items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains"];
/// Keywords that hold schemas, in an array or by name.
const OF_MANY: [&str; 9] = [
    // first, so that a definition is named and not what refers to it
    "$defs",
    "definitions",
    "properties",
    "patternProperties",
    "prefixItems",
    "items",
    "anyOf",
    "oneOf",
    "allOf",
];

/// The smallest part of a schema that has the problem by itself, as a JSON pointer; `None` if that is
/// the whole, or there is no schema. `problem_of` compiles a part.
pub(super) fn of_problem(
    source: &GrammarSource,
    problem: &str,
    problem_of: impl Fn(&GrammarSource) -> Option<String>,
) -> Option<String> {
    let GrammarSource::JsonSchema { schema: root, whitespace } = source else { return None };
    let mut left = PARTS_MAX;
    let has_problem = |part: &Value| {
        let schema = with_definitions(root, part);
        let part = GrammarSource::JsonSchema { schema, whitespace: whitespace.clone() };
        let found = problem_of(&part);
        found.is_some_and(|found| is_same(problem, &found))
    };
    let (mut place, mut part) = (String::new(), root);
    'deeper: loop {
        for (step, child) in parts(part) {
            left = left.checked_sub(1)?;
            if has_problem(child) {
                place += &step;
                part = child;
                continue 'deeper;
            }
        }
        return (!place.is_empty()).then_some(place);
    }
}

/// Whether the error of a schema comes from this part of it. The schema's message may contain more than
/// the part's, and words differently that it is unsatisfiable.
fn is_same(whole: &str, part: &str) -> bool {
    let unsatisfiable = |problem: &str| problem.contains("nsatisfiable");
    whole.contains(part.lines().next().unwrap_or_default()) || unsatisfiable(whole) && unsatisfiable(part)
}

/// A part of a schema with the definitions that it may refer to. Those of the root stay out of the way
/// of a part that is looked at as a definition itself.
fn with_definitions(root: &Value, part: &Value) -> Value {
    let mut part = part.clone();
    if let Value::Object(fields) = &mut part {
        for name in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(name) {
                fields.entry(name).or_insert_with(|| definitions.clone());
            }
        }
    }
    part
}

/// The schemas directly inside a schema, with the rest of their pointers.
fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let mut parts = Vec::new();
    for keyword in OF_MANY {
        match schema.get(keyword) {
            Some(Value::Array(many)) => {
                parts.extend(many.iter().enumerate().map(|(at, part)| (format!("/{keyword}/{at}"), part)));
            }
            Some(Value::Object(many)) if keyword != "items" => {
                parts.extend(many.iter().map(|(name, part)| (format!("/{keyword}/{}", escaped(name)), part)));
            }
            _ => {}
        }
    }
    for keyword in OF_ONE {
        if let Some(part @ (Value::Object(_) | Value::Bool(_))) = schema.get(keyword) {
            parts.push((format!("/{keyword}"), part));
        }
    }
    parts
}

/// A name as a JSON pointer writes it.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
