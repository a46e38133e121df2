//! What an output must look like: `response_format` and its spellings in vLLM.

use std::sync::Arc;

use serde_json::Value;

use super::backend::TextModel;
use super::error::ApiError;
use super::fields::{Fields, brief, wrong_type};
use super::tools::Tools;
use crate::grammar::{FunctionCall, GrammarError, GrammarSource};
use crate::protocol::{TokenConstraint, TokenId};

/// Most texts of a choice.
pub const CHOICES_MAX: usize = 1024;

/// A request's description of its output.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputFormat {
    /// The field that has it, for error messages.
    pub field: String,
    /// The description.
    pub source: GrammarSource,
    /// Parts of it with their fields. They are compiled by themselves first, so that an error names the
    /// field of the part.
    pub parts: Vec<(String, GrammarSource)>,
}

impl OutputFormat {
    fn new(field: impl Into<String>, source: GrammarSource) -> OutputFormat {
        OutputFormat { field: field.into(), source, parts: Vec::new() }
    }

    /// An output that must be calls of tools.
    pub fn calls(tools: &Tools) -> OutputFormat {
        let forced = tools.forced();
        let functions: Vec<FunctionCall> = forced.iter().map(|(_, call)| call.clone()).collect();
        let schema = |(field, call): (String, FunctionCall)| {
            (field, GrammarSource::JsonSchema { schema: call.parameters, whitespace: None })
        };
        let parts = forced.into_iter().map(schema).collect();
        let source = GrammarSource::calls(&functions, tools.parallel);
        OutputFormat { field: "tools".to_owned(), source, parts }
    }

    /// Compiles the description of an output that ends with one of `stop_tokens`.
    ///
    /// # Errors
    /// 400 for a description that cannot be served, naming the field.
    pub fn compile(
        &self,
        text: &dyn TextModel,
        stop_tokens: &[TokenId],
    ) -> Result<Arc<dyn TokenConstraint>, ApiError> {
        for (field, part) in &self.parts {
            text.constraint(part, stop_tokens).map_err(|error| refused(field, &error))?;
        }
        text.constraint(&self.source, stop_tokens).map_err(|error| refused(&self.field, &error))
    }
}

/// The error for a description that cannot be served.
fn refused(field: &str, error: &GrammarError) -> ApiError {
    match error {
        GrammarError::TooLong(_) => ApiError::invalid(field, format!("{field} {error}")),
        GrammarError::Invalid { .. } => ApiError::invalid(field, format!("{field} cannot be used: {error}")),
        GrammarError::Unsupported(_) => ApiError::unsupported(field, format!("{field}: {error}")),
    }
}

/// A request's white space between the tokens of JSON, and the field that has it.
type Whitespace = Option<(String, String)>;

/// Takes the fields that say what the output must look like; `None` if any text will do.
///
/// # Errors
/// 400 for a wrong type, more than one description, or white space without JSON.
pub fn parse(fields: &mut Fields) -> Result<Option<OutputFormat>, ApiError> {
    // every description is compiled by llguidance, whichever backend the client names
    fields.take("guided_decoding_backend");
    let mut formats = Vec::new();
    formats.extend(response_format(fields)?);
    let mut whitespace = whitespace(fields, "guided_whitespace_pattern")?;
    described(fields, "guided_", &mut formats)?;
    if let Some(value) = fields.take("structured_outputs") {
        let mut nested = fields.nested("structured_outputs", value)?;
        let of_nested = self::whitespace(&mut nested, "whitespace_pattern")?;
        whitespace = whitespace.or(of_nested);
        described(&mut nested, "", &mut formats)?;
        if nested.boolean("json_object")? == Some(true) {
            formats.push(OutputFormat::new(nested.path("json_object"), any_object()));
        }
        nested.finish()?;
    }
    if let [first, second, ..] = &formats[..] {
        let message =
            format!("{} and {} both describe the output; set one of them", first.field, second.field);
        return Err(ApiError::invalid(&second.field, message));
    }
    with_whitespace(formats.pop(), whitespace)
}

fn any_object() -> GrammarSource {
    GrammarSource::json_object(None)
}

fn whitespace(fields: &mut Fields, name: &str) -> Result<Whitespace, ApiError> {
    let path = fields.path(name);
    Ok(fields.string(name)?.map(|pattern| (path, pattern)))
}

fn with_whitespace(
    format: Option<OutputFormat>,
    given: Whitespace,
) -> Result<Option<OutputFormat>, ApiError> {
    let Some((path, pattern)) = given else { return Ok(format) };
    match format {
        Some(OutputFormat { field, source: GrammarSource::JsonSchema { schema, .. }, .. }) => {
            let parts = vec![(path, GrammarSource::Regex(pattern.clone()))];
            let source = GrammarSource::JsonSchema { schema, whitespace: Some(pattern) };
            Ok(Some(OutputFormat { field, source, parts }))
        }
        _ => Err(ApiError::invalid(&path, format!("{path} is for JSON, and no field asks for JSON"))),
    }
}

/// `response_format`, as the OpenAI API has it.
fn response_format(fields: &mut Fields) -> Result<Option<OutputFormat>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(value) = fields.take(FIELD) else { return Ok(None) };
    let mut format = fields.nested(FIELD, value)?;
    let kind = format.required("type")?;
    let described = match kind.as_str() {
        Some("text") => None,
        Some("json_object") => Some(OutputFormat::new(FIELD, any_object())),
        Some("json_schema") => Some(json_schema(&mut format)?),
        _ => {
            let path = format.path("type");
            let message = format!(
                "{path} must be \"text\", \"json_object\" or \"json_schema\" and is {}",
                brief(&kind)
            );
            return Err(ApiError::invalid(path, message));
        }
    };
    format.finish()?;
    Ok(described)
}

/// The schema with its name. It always holds, whether or not the client calls it strict.
fn json_schema(format: &mut Fields) -> Result<OutputFormat, ApiError> {
    let path = format.path("json_schema");
    let value = format.required("json_schema")?;
    let mut named = format.nested(&path, value)?;
    named.string("name")?;
    named.string("description")?;
    named.boolean("strict")?;
    let field = named.path("schema");
    let source = schema(&field, named.required("schema")?)?;
    named.finish()?;
    Ok(OutputFormat::new(field, source))
}

/// The descriptions in vLLM's spelling, whose names begin with `prefix`.
fn described(fields: &mut Fields, prefix: &str, formats: &mut Vec<OutputFormat>) -> Result<(), ApiError> {
    type Read = fn(&str, Value) -> Result<GrammarSource, ApiError>;
    let kinds: [(&str, Read); 4] =
        [("json", schema_or_text), ("regex", regex), ("choice", choice), ("grammar", lark)];
    for (kind, read) in kinds {
        let name = format!("{prefix}{kind}");
        let field = fields.path(&name);
        if let Some(value) = fields.take(&name) {
            let source = read(&field, value)?;
            formats.push(OutputFormat::new(field, source));
        }
    }
    Ok(())
}

fn schema(field: &str, schema: Value) -> Result<GrammarSource, ApiError> {
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(GrammarSource::JsonSchema { schema, whitespace: None }),
        other => Err(wrong_type(field, "a JSON schema (an object or a boolean)", &other)),
    }
}

/// A schema, or one as text.
fn schema_or_text(field: &str, value: Value) -> Result<GrammarSource, ApiError> {
    let Value::String(text) = value else { return schema(field, value) };
    let parsed = serde_json::from_str(&text)
        .map_err(|error| ApiError::invalid(field, format!("{field} is not valid JSON: {error}")))?;
    schema(field, parsed)
}

fn text(field: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(field, "a string", &other)),
    }
}

fn regex(field: &str, value: Value) -> Result<GrammarSource, ApiError> {
    text(field, value).map(GrammarSource::Regex)
}

fn lark(field: &str, value: Value) -> Result<GrammarSource, ApiError> {
    let grammar = text(field, value)?;
    if grammar.contains("::=") {
        let message = format!("{field} is in GBNF or EBNF (`::=`), which is not supported; write it as Lark");
        return Err(ApiError::unsupported(field, message));
    }
    Ok(GrammarSource::Lark(grammar))
}

fn choice(field: &str, value: Value) -> Result<GrammarSource, ApiError> {
    let Value::Array(values) = value else { return Err(wrong_type(field, "an array of strings", &value)) };
    if values.is_empty() || values.len() > CHOICES_MAX {
        let message = format!("{field} must have 1 to {CHOICES_MAX} strings and has {}", values.len());
        return Err(ApiError::invalid(field, message));
    }
    let choice = |(at, value): (usize, Value)| match value {
        Value::String(choice) if !choice.is_empty() => Ok(choice),
        other => {
            let message =
                format!("{field}[{at}] must be a string that is not empty and is {}", brief(&other));
            Err(ApiError::invalid(field, message))
        }
    };
    values.into_iter().enumerate().map(choice).collect::<Result<_, _>>().map(GrammarSource::Choice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::UnknownFields;

    fn parsed(body: &Value) -> Result<Option<OutputFormat>, ApiError> {
        let mut fields = Fields::from_body(body.to_string().as_bytes(), UnknownFields::Refuse)?;
        let format = parse(&mut fields)?;
        fields.finish()?;
        Ok(format)
    }

    fn source(body: &Value) -> Option<GrammarSource> {
        parsed(body).unwrap_or_else(|error| panic!("{body}: {error}")).map(|format| format.source)
    }

    fn json_source(schema: Value, whitespace: Option<&str>) -> Option<GrammarSource> {
        Some(GrammarSource::JsonSchema { schema, whitespace: whitespace.map(str::to_owned) })
    }

    #[test]
    fn each_spelling_of_a_schema_is_the_same_description() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let named = json!({"name": "a", "schema": schema, "strict": true, "description": "an a"});
        for body in [
            json!({"response_format": {"type": "json_schema", "json_schema": named}}),
            json!({"guided_json": schema, "guided_decoding_backend": "xgrammar"}),
            json!({"guided_json": schema.to_string()}),
            json!({"structured_outputs": {"json": schema}}),
        ] {
            assert_eq!(source(&body), json_source(schema.clone(), None), "{body}");
        }
    }

    #[test]
    fn each_kind_of_description_has_its_two_spellings() {
        for (name, value, expected) in [
            ("regex", json!("a+"), GrammarSource::Regex("a+".to_owned())),
            ("choice", json!(["a", "b"]), GrammarSource::Choice(vec!["a".to_owned(), "b".to_owned()])),
            ("grammar", json!("start: \"a\""), GrammarSource::Lark("start: \"a\"".to_owned())),
        ] {
            assert_eq!(source(&json!({format!("guided_{name}"): value})), Some(expected.clone()));
            assert_eq!(source(&json!({"structured_outputs": {name: value}})), Some(expected));
        }
        let object = GrammarSource::json_object(None);
        assert_eq!(source(&json!({"response_format": {"type": "json_object"}})), Some(object.clone()));
        assert_eq!(source(&json!({"structured_outputs": {"json_object": true}})), Some(object));
    }

    #[test]
    fn what_asks_for_nothing_is_no_description() {
        for body in [
            json!({}),
            json!({"response_format": {"type": "text"}}),
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"json_object": false}}),
            json!({"guided_json": null, "guided_decoding_backend": "auto"}),
        ] {
            assert_eq!(source(&body), None, "{body}");
        }
    }

    #[test]
    fn white_space_goes_with_json_only() {
        let of_guided = json!({"guided_json": {}, "guided_whitespace_pattern": " ?"});
        assert_eq!(source(&of_guided), json_source(json!({}), Some(" ?")));
        let nested = json!({"structured_outputs": {"json": {}, "whitespace_pattern": " ?"}});
        assert_eq!(source(&nested), json_source(json!({}), Some(" ?")));
        for body in [
            json!({"guided_whitespace_pattern": " ?"}),
            json!({"guided_regex": "a", "guided_whitespace_pattern": " ?"}),
        ] {
            let error = parsed(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("guided_whitespace_pattern"), "{error}");
        }
    }

    #[test]
    fn two_descriptions_are_refused_naming_both() {
        let body = json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}});
        let error = parsed(&body).unwrap_err();
        let message =
            "response_format and structured_outputs.regex both describe the output; set one of them";
        assert_eq!(error.message, message);
        assert!(parsed(&json!({"guided_choice": ["a"], "guided_regex": "a"})).is_err());
    }

    #[test]
    fn a_wrong_type_is_refused_with_the_full_name_of_its_field() {
        for (body, param) in [
            (json!({"response_format": "json_object"}), "response_format"),
            (json!({"response_format": {}}), "response_format.type"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
                "response_format.json_schema.schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"response_format": {"type": "text", "x": 1}}), "response_format.x"),
            (json!({"guided_json": 1}), "guided_json"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_regex": {}}), "guided_regex"),
            (json!({"guided_choice": "a"}), "guided_choice"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", 2]}), "guided_choice"),
            (json!({"guided_choice": [""]}), "guided_choice"),
            (json!({"guided_grammar": "root ::= \"a\""}), "guided_grammar"),
            (json!({"structured_outputs": {"json_object": 1}}), "structured_outputs.json_object"),
            (json!({"structured_outputs": {"structural_tag": "a"}}), "structured_outputs.structural_tag"),
        ] {
            let error = parsed(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}: {error}");
        }
        let many = json!({"guided_choice": vec!["a"; CHOICES_MAX + 1]});
        assert!(parsed(&many).unwrap_err().message.contains("1 to 1024 strings and has 1025"));
    }
}
