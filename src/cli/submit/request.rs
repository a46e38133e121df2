//! Parses input lines into requests.

use serde_json::Value;

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
/// Keys of OpenAI's batch lines. None is a field of a request.
const BATCH_KEYS: [&str; 4] = ["custom_id", "method", "url", "body"];

/// A request to send.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// Path of the API.
    pub path: &'static str,
    /// The JSON body.
    pub body: Value,
}

/// The form of a line and of its result.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// A request, as the API takes it.
    Line,
    /// A line of an OpenAI batch.
    OpenAi {
        /// The caller's name for the request, as given; `null` if unknown.
        custom_id: Value,
    },
}

impl Form {
    /// The form of a line that cannot be read, beside lines of this form.
    pub fn of_an_unknown_request(&self) -> Form {
        match self {
            Form::Line => Form::Line,
            Form::OpenAi { .. } => Form::OpenAi { custom_id: Value::Null },
        }
    }
}

/// Reads a line: its form, and its request or why that cannot be sent.
///
/// # Errors
/// If the line is not JSON, so that its form is unknown.
pub fn parse(text: &str) -> Result<(Form, Result<Request, String>), String> {
    let line: Value = serde_json::from_str(text).map_err(|error| format!("the line is not JSON: {error}"))?;
    if !BATCH_KEYS.iter().any(|key| line.get(key).is_some()) {
        return Ok((Form::Line, plain(line)));
    }
    let custom_id = line.get("custom_id").cloned().unwrap_or_default();
    Ok((Form::OpenAi { custom_id }, openai(line)))
}

fn plain(body: Value) -> Result<Request, String> {
    let has = |key: &str| body.get(key).is_some();
    let path = match (has("messages"), has("prompt")) {
        (true, false) => CHAT,
        (false, true) => COMPLETION,
        _ => return Err("the line must have either messages or prompt".to_owned()),
    };
    unstreamed(path, body)
}

fn openai(mut line: Value) -> Result<Request, String> {
    let mut take = |key: &str| line.get_mut(key).map(Value::take).unwrap_or_default();
    let (custom_id, method, url, body) = (take("custom_id"), take("method"), take("url"), take("body"));
    if !custom_id.is_string() {
        return Err(format!("custom_id must be a text, not {custom_id}"));
    }
    if method != "POST" {
        return Err(format!("method must be \"POST\", not {method}"));
    }
    let path = match url.as_str() {
        Some(CHAT) => CHAT,
        Some(COMPLETION) => COMPLETION,
        _ => return Err(format!("url must be \"{CHAT}\" or \"{COMPLETION}\", not {url}")),
    };
    if !body.is_object() {
        return Err("body must be an object, the request".to_owned());
    }
    unstreamed(path, body)
}

fn unstreamed(path: &'static str, body: Value) -> Result<Request, String> {
    match body.get("stream") {
        None | Some(Value::Bool(false) | Value::Null) => Ok(Request { path, body }),
        Some(_) => Err("stream is not supported in batches; remove it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(line: &Value) -> String {
        let (form, request) = parse(&line.to_string()).expect("JSON");
        assert!(matches!(form, Form::OpenAi { .. }), "{line}");
        request.expect_err("a bad line")
    }

    #[test]
    fn a_batch_line_must_say_what_openai_asks_for() {
        let good =
            json!({ "custom_id": "a", "method": "POST", "url": CHAT, "body": { "messages": [], "n": 1 } });
        let (form, request) = parse(&good.to_string()).expect("JSON");
        assert_eq!(form, Form::OpenAi { custom_id: json!("a") });
        assert_eq!(request, Ok(Request { path: CHAT, body: json!({ "messages": [], "n": 1 }) }));
        for (key, value, said) in [
            ("custom_id", json!(7), "custom_id must be a text, not 7"),
            ("custom_id", Value::Null, "custom_id must be a text, not null"),
            ("method", json!("GET"), "method must be \"POST\", not \"GET\""),
            ("url", json!("/v1/embeddings"), "not \"/v1/embeddings\""),
            ("body", json!([]), "body must be an object"),
            ("body", json!({ "messages": [], "stream": true }), "stream is not supported"),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(problem(&bad).contains(said), "{}", problem(&bad));
        }
    }

    #[test]
    fn a_stream_that_is_declined_is_no_stream() {
        for value in [json!(false), Value::Null] {
            let (_, request) = parse(&json!({ "prompt": "a", "stream": value }).to_string()).expect("JSON");
            assert_eq!(request.expect("a request").path, COMPLETION);
        }
    }
}
