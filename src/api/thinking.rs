//! `reasoning_effort` and `thinking`, which become variables of the chat template.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, brief};

/// Values of `reasoning_effort`.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Variables by which templates switch the reasoning on and off.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

const EFFORT: &str = "reasoning_effort";

/// Takes the fields and sets the variables that stand for them, unless the request has set these
/// itself. `known` are those that the template reads.
///
/// # Errors
/// 400 for another value, or one that asks for reasoning of a model without.
pub fn set_variables(
    fields: &mut Fields,
    known: &BTreeSet<String>,
    variables: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let has = |name: &str| known.contains(name);
    let mut set = |name: &str, value: Value| {
        if known.contains(name) && !variables.contains_key(name) {
            variables.insert(name.to_owned(), value);
        }
    };
    let able = has(EFFORT) || SWITCHES.iter().any(|name| has(name));
    if let Some(value) = fields.take(EFFORT) {
        let effort = EFFORTS.into_iter().find(|effort| value == *effort).ok_or_else(|| {
            let message = format!("{EFFORT} must be one of {EFFORTS:?} and is {}", brief(&value));
            ApiError::invalid(EFFORT, message)
        })?;
        check_able(able || effort == "none", EFFORT, &value)?;
        set(EFFORT, value);
        SWITCHES.iter().for_each(|name| set(name, (effort != "none").into()));
    }
    if let Some(value) = fields.take("thinking") {
        let mut thinking = fields.nested("thinking", value)?;
        let kind = thinking.required("type")?;
        thinking.finish()?;
        let on = match kind.as_str() {
            Some("enabled") => true,
            Some("disabled") => false,
            _ => {
                let message =
                    format!("thinking.type must be \"enabled\" or \"disabled\" and is {}", brief(&kind));
                return Err(ApiError::invalid("thinking.type", message));
            }
        };
        check_able(able || !on, "thinking.type", &kind)?;
        SWITCHES.iter().for_each(|name| set(name, on.into()));
    }
    Ok(())
}

fn check_able(able: bool, param: &str, value: &Value) -> Result<(), ApiError> {
    if able {
        return Ok(());
    }
    let message =
        format!("{param} = {value} is not supported: the model's chat template has no variable for it");
    Err(ApiError::unsupported(param, message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::UnknownFields;

    fn set(known: &[&str], given: Value, body: Value) -> Result<Value, ApiError> {
        let mut fields = Fields::from_body(body.to_string().as_bytes(), UnknownFields::Refuse)?;
        let mut variables = given.as_object().cloned().unwrap_or_default();
        let known = known.iter().map(|&name| name.to_owned()).collect();
        set_variables(&mut fields, &known, &mut variables)?;
        fields.finish()?;
        Ok(Value::Object(variables))
    }

    #[test]
    fn an_effort_reaches_the_variables_that_the_template_reads() {
        let effort =
            |known: &[&str], effort: &str| set(known, json!({}), json!({"reasoning_effort": effort}));
        assert_eq!(effort(&["reasoning_effort"], "low"), Ok(json!({"reasoning_effort": "low"})));
        assert_eq!(effort(&["enable_thinking"], "none"), Ok(json!({"enable_thinking": false})));
        assert_eq!(effort(&["thinking"], "high"), Ok(json!({"thinking": true})));
    }

    #[test]
    fn thinking_is_switched_by_its_type() {
        let thinking = |kind: &str| set(&["enable_thinking"], json!({}), json!({"thinking": {"type": kind}}));
        assert_eq!(thinking("enabled"), Ok(json!({"enable_thinking": true})));
        assert_eq!(thinking("disabled"), Ok(json!({"enable_thinking": false})));
        assert_eq!(thinking("adaptive").unwrap_err().param.as_deref(), Some("thinking.type"));
    }

    #[test]
    fn a_variable_that_the_request_sets_itself_stays() {
        let given = json!({"enable_thinking": true});
        let body = json!({"thinking": {"type": "disabled"}});
        assert_eq!(set(&["enable_thinking"], given.clone(), body), Ok(given));
    }

    #[test]
    fn a_model_without_reasoning_can_only_be_asked_not_to() {
        for body in [json!({"reasoning_effort": "none"}), json!({"thinking": {"type": "disabled"}})] {
            assert_eq!(set(&["messages"], json!({}), body), Ok(json!({})));
        }
        for (body, param) in [
            (json!({"reasoning_effort": "low"}), "reasoning_effort"),
            (json!({"thinking": {"type": "enabled"}}), "thinking.type"),
        ] {
            let error = set(&["messages"], json!({}), body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn another_effort_is_refused() {
        let error = set(&["reasoning_effort"], json!({}), json!({"reasoning_effort": "some"})).unwrap_err();
        assert!(error.message.ends_with("and is \"some\""), "{error}");
    }

    #[test]
    fn the_docs_name_every_effort() {
        let docs = include_str!("../../docs/api.md");
        let row = docs.lines().find(|line| line.starts_with("| `reasoning_effort`")).expect("a row");
        for effort in EFFORTS {
            assert!(row.contains(&format!("`{effort}`")), "docs/api.md does not name {effort}");
        }
    }
}
