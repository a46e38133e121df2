//! Some two hundred schemas: each is refused, or what is written under it is JSON that fits.

use super::validity::fits;
use super::*;

/// Schemas of single values.
fn values() -> Vec<Value> {
    vec![
        json!({"type": "null"}),
        json!({"type": "boolean"}),
        json!({"type": "integer"}),
        json!({"type": "integer", "minimum": 3, "maximum": 17}),
        json!({"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5}),
        json!({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}),
        json!({"type": "number", "minimum": 0, "maximum": 1}),
        json!({"type": "number", "minimum": -1000, "maximum": 1000}),
        json!({"type": "string", "maxLength": 6}),
        json!({"type": "string", "minLength": 2, "maxLength": 4}),
        json!({"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "string", "format": "uuid"}),
        json!({"type": "string"}),
        json!({"enum": ["red", "green", 3, null, true]}),
        json!({"enum": ["it's", "a \"quote\"", "new\nline", "ü"]}),
        json!({"const": "fixed"}),
        json!({"const": {"a": [1, 2, {"b": null}]}}),
        json!({"const": 0.5}),
        json!({"type": ["string", "null"], "maxLength": 5}),
    ]
}

/// What a value can stand in.
fn containers() -> Vec<fn(Value) -> Value> {
    vec![
        |inner| inner,
        |inner| json!({"type": "array", "items": inner, "maxItems": 3}),
        |inner| json!({"type": "array", "items": inner, "minItems": 1, "maxItems": 2}),
        |inner| json!({"type": "array", "prefixItems": [{"type": "null"}, inner], "items": false, "minItems": 2}),
        |inner| json!({"type": "object", "properties": {"a": inner}, "required": ["a"], "additionalProperties": false}),
        |inner| {
            json!({
                "type": "object", "title": "two", "description": "of them",
                "properties": {"first name": inner, "b": inner},
                "required": ["b"], "additionalProperties": false,
            })
        },
        |inner| json!({"type": "object", "additionalProperties": inner, "maxProperties": 2}),
        |inner| json!({"anyOf": [{"const": "other"}, inner]}),
        |inner| json!({"allOf": [inner, {}]}),
        |inner| {
            json!({
                "$defs": {"node": {
                    "type": "object",
                    "properties": {"value": inner, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                    "required": ["value", "next"], "additionalProperties": false,
                }},
                "$ref": "#/$defs/node",
            })
        },
    ]
}

fn all() -> Vec<Value> {
    values()
        .into_iter()
        .flat_map(|value| containers().into_iter().map(move |hold| hold(value.clone())))
        .collect()
}

#[test]
fn what_is_written_under_a_schema_fits_it_whatever_the_logits_say() {
    let schemas = all();
    assert_eq!(schemas.len(), 200);
    for (number, wanted) in schemas.iter().enumerate() {
        let constraint = compiled(&schema(wanted.clone()));
        for seed in 0..3 {
            let text = drawn(&*constraint, 1000 * number as u64 + seed);
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{wanted}: {text:?}: {error}"));
            assert!(fits(&value, wanted, wanted), "{wanted}: {text}");
        }
    }
}

#[test]
fn what_cannot_be_followed_is_refused_and_named_in_each_place() {
    let wrong = [
        json!({"type": "text"}),
        json!({"type": "string", "pattern": "["}),
        json!({"type": "string", "format": "made-up"}),
        json!({"not": {"type": "string"}}),
        json!({"type": "array", "uniqueItems": true}),
        json!({"if": {"type": "string"}, "then": {"maxLength": 1}}),
        json!({"$ref": "#/$defs/nowhere"}),
        json!({"type": "integer", "minimum": 5, "maximum": 4}),
    ];
    for wrong in &wrong {
        assert_eq!(place(&schema(wrong.clone())), None, "{wrong}");
        let error = refused(&schema(wrong.clone())).to_string();
        assert!(!error.is_empty() && error.len() < 600, "{error}");
        for (container, pointer) in [
            (json!({"type": "object", "properties": {"a": wrong}, "required": ["a"]}), "/properties/a"),
            (
                json!({"type": "array", "prefixItems": [{"type": "null"}, wrong], "minItems": 2}),
                "/prefixItems/1",
            ),
            (json!({"type": "array", "items": wrong, "minItems": 1}), "/items"),
        ] {
            assert_eq!(place(&schema(container.clone())).as_deref(), Some(pointer), "{container}");
        }
    }
}
