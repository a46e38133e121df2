//! The result of a request, in the form of its line.

use serde_json::{Value, json};

use super::request::Form;
use crate::cli::client::{Answered, ClientError};

/// Why there is no response.
pub enum Failure {
    /// The line was not sent: why.
    Line(String),
    /// The request failed.
    Client(ClientError),
}

/// Outcome of one input line.
pub struct Outcome {
    /// Its number from 1.
    pub line: u64,
    /// The form of its result.
    pub form: Form,
    /// The response, or why there is none.
    pub result: Result<Answered, Failure>,
}

impl Outcome {
    /// Output tokens of the response.
    pub fn completion_tokens(&self) -> u64 {
        let tokens = |answer: &Answered| answer.body.pointer("/usage/completion_tokens")?.as_u64();
        self.result.as_ref().ok().and_then(tokens).unwrap_or(0)
    }

    /// Why the request failed, with the number of its line.
    pub fn failure(&self) -> Option<String> {
        let line = self.line;
        self.result.as_ref().err().map(|failure| match failure {
            Failure::Line(problem) => format!("line {line}: {problem}"),
            Failure::Client(error) => format!("line {line}: {error}"),
        })
    }

    /// The line of the output. `run` makes the ids of an OpenAI batch differ between runs.
    pub fn to_json(&self, run: &str) -> Value {
        match &self.form {
            Form::Line => match &self.result {
                Ok(answer) => json!({ "line": self.line, "response": answer.body }),
                Err(failure) => json!({ "line": self.line, "error": failure.to_object() }),
            },
            Form::OpenAi { custom_id } => {
                let (response, error) = self.openai();
                let id = format!("batch_req_{run}_{}", self.line);
                json!({ "id": id, "custom_id": custom_id, "response": response, "error": error })
            }
        }
    }

    /// Response and error of an OpenAI batch: a refusal is a response.
    fn openai(&self) -> (Value, Value) {
        let response = |status: u16, request_id: &Option<String>, body: Value| json!({ "status_code": status, "request_id": request_id, "body": body });
        let error = |code: &str| json!({ "code": code, "message": self.failure() });
        match &self.result {
            Ok(answer) => (response(answer.status, &answer.request_id, answer.body.clone()), Value::Null),
            Err(Failure::Line(_)) => (Value::Null, error(INVALID_LINE)),
            Err(Failure::Client(ClientError::Refused { status, message, body, request_id, .. })) => {
                let body = body.as_deref().cloned();
                let body = body.unwrap_or_else(|| json!({ "error": { "message": message } }));
                (response(*status, request_id, body), Value::Null)
            }
            Err(Failure::Client(_)) => (Value::Null, error(CLIENT_ERROR)),
        }
    }
}

const INVALID_LINE: &str = "invalid_line";
const CLIENT_ERROR: &str = "client_error";

impl Failure {
    /// The daemon's error object, or one in the same format.
    fn to_object(&self) -> Value {
        match self {
            Failure::Line(problem) => json!({ "message": problem, "type": INVALID_LINE }),
            Failure::Client(error) => {
                let own = match error {
                    ClientError::Refused { body: Some(body), .. } => body.get("error").cloned(),
                    _ => None,
                };
                own.unwrap_or_else(|| json!({ "message": error.to_string(), "type": CLIENT_ERROR }))
            }
        }
    }
}
