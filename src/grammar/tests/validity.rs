//! A small validator, written apart from the parser that it checks.

use serde_json::Value;

/// Whether a value fits a schema, as far as the keywords go that the schemas of these tests have.
pub fn fits(value: &Value, schema: &Value, root: &Value) -> bool {
    let Value::Object(keywords) = schema else { return schema != &Value::Bool(false) };
    keywords.iter().all(|(keyword, given)| holds(value, keyword, given, schema, root))
}

fn holds(value: &Value, keyword: &str, given: &Value, schema: &Value, root: &Value) -> bool {
    let fits_one = |schema: &Value| fits(value, schema, root);
    let all_items = |holds: &dyn Fn(usize, &Value) -> bool| match value {
        Value::Array(items) => items.iter().enumerate().all(|(at, item)| holds(at, item)),
        _ => true,
    };
    let length = |of: Option<usize>, holds: fn(u64, u64) -> bool| {
        of.is_none_or(|length| holds(length as u64, given.as_u64().expect("a bound")))
    };
    let items = value.as_array().map(Vec::len);
    let members = value.as_object().map(serde_json::Map::len);
    let characters = value.as_str().map(|text| text.chars().count());
    let number = |holds: fn(f64, f64) -> bool| {
        value.as_f64().is_none_or(|number| holds(number, given.as_f64().expect("a bound")))
    };
    match keyword {
        "type" => match given {
            Value::Array(kinds) => kinds.iter().any(|kind| is_a(value, kind)),
            kind => is_a(value, kind),
        },
        "enum" => given.as_array().expect("an array").contains(value),
        "const" => given == value,
        "anyOf" => given.as_array().expect("an array").iter().any(fits_one),
        "oneOf" => given.as_array().expect("an array").iter().filter(|schema| fits_one(schema)).count() == 1,
        "allOf" => given.as_array().expect("an array").iter().all(fits_one),
        "$ref" => {
            let pointer = given.as_str().and_then(|path| path.strip_prefix('#')).expect("inside the schema");
            fits(value, root.pointer(pointer).expect("it is there"), root)
        }
        "properties" => value.as_object().is_none_or(|object| {
            object.iter().all(|(name, value)| given.get(name).is_none_or(|schema| fits(value, schema, root)))
        }),
        "required" => value.as_object().is_none_or(|object| {
            given
                .as_array()
                .expect("an array")
                .iter()
                .all(|name| object.contains_key(name.as_str().expect("a name")))
        }),
        "additionalProperties" => value.as_object().is_none_or(|object| {
            let known =
                |name: &String| schema.get("properties").is_some_and(|names| names.get(name).is_some());
            object.iter().all(|(name, value)| known(name) || fits(value, given, root))
        }),
        "prefixItems" => all_items(&|at, item| given.get(at).is_none_or(|schema| fits(item, schema, root))),
        "items" => {
            let first = schema.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
            all_items(&|at, item| at < first || fits(item, given, root))
        }
        "minItems" => length(items, |length, bound| length >= bound),
        "maxItems" => length(items, |length, bound| length <= bound),
        "minProperties" => length(members, |length, bound| length >= bound),
        "maxProperties" => length(members, |length, bound| length <= bound),
        "minLength" => length(characters, |length, bound| length >= bound),
        "maxLength" => length(characters, |length, bound| length <= bound),
        "minimum" => number(|number, bound| number >= bound),
        "maximum" => number(|number, bound| number <= bound),
        "exclusiveMinimum" => number(|number, bound| number > bound),
        "exclusiveMaximum" => number(|number, bound| number < bound),
        "multipleOf" => number(|number, bound| (number / bound).fract() == 0.0),
        "pattern" | "format" | "$defs" | "title" | "description" | "default" => true,
        other => panic!("the validator does not know {other}"),
    }
}

fn is_a(value: &Value, kind: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("a type {other}"),
    }
}
