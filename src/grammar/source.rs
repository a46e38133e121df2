//! Descriptions of outputs.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

/// White space between the tokens of JSON, unless a request says otherwise: bounded, so that a model
/// cannot write it for ever.
pub const WHITESPACE: &str = r"\x20|\n\x20{0,32}|\n\t{1,8}";

/// A function that an output may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCall {
    /// Its name; must need no escapes in JSON.
    pub name: String,
    /// The schema of its arguments.
    pub parameters: Value,
}

/// What an output must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrammarSource {
    /// JSON that fits a schema.
    JsonSchema {
        /// The schema: an object or a boolean.
        schema: Value,
        /// A regular expression of the white space that may stand between two tokens.
        whitespace: Option<String>,
    },
    /// A text that matches a regular expression as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar in llguidance's variant of Lark.
    Lark(String),
}

impl GrammarSource {
    /// Any JSON object.
    pub fn json_object(whitespace: Option<String>) -> GrammarSource {
        GrammarSource::JsonSchema { schema: json!({"type": "object"}), whitespace }
    }

    /// A list of calls, `[{"name": …, "arguments": …}, …]`; with `many`, of more than one.
    ///
    /// Each schema stays a document of its own, so that its references find its own definitions.
    pub fn calls(functions: &[FunctionCall], many: bool) -> GrammarSource {
        let more = if many { r#" (", " call)*"# } else { "" };
        let call = |FunctionCall { name, parameters }: &FunctionCall| {
            let begin = json!(format!("{{\"name\": \"{name}\", \"arguments\": "));
            format!("({begin} %json {} \"}}\")", with_options(parameters, None))
        };
        let calls: Vec<String> = functions.iter().map(call).collect();
        GrammarSource::Lark(format!("start: \"[\" call{more} \"]\"\ncall: {}", calls.join(" | ")))
    }

    /// Its length as text, in bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            GrammarSource::JsonSchema { schema, whitespace } => {
                schema.to_string().len() + whitespace.as_ref().map_or(0, String::len)
            }
            GrammarSource::Regex(text) | GrammarSource::Lark(text) => text.len(),
            GrammarSource::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
        }
    }

    pub(super) fn to_llguidance(&self) -> TopLevelGrammar {
        match self {
            GrammarSource::JsonSchema { schema, whitespace } => {
                TopLevelGrammar::from_json_schema(with_options(schema, whitespace.as_deref()))
            }
            GrammarSource::Regex(regex) => TopLevelGrammar::from_regex(regex),
            GrammarSource::Choice(choices) => TopLevelGrammar::from_lark(alternatives(choices)),
            GrammarSource::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        }
    }
}

/// The schema with the options of this server, whatever options it came with.
fn with_options(schema: &Value, whitespace: Option<&str>) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema.clone(),
        Value::Bool(false) => serde_json::Map::from_iter([("enum".to_owned(), json!([]))]),
        _ => serde_json::Map::new(),
    };
    let options = json!({"whitespace_pattern": whitespace.unwrap_or(WHITESPACE)});
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

fn alternatives(choices: &[String]) -> String {
    let choices: Vec<String> = choices.iter().map(|choice| json!(choice).to_string()).collect();
    format!("start: {}", choices.join(" | "))
}
