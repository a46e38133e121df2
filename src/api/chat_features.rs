//! What the chat template of the served model can be told, and how the model answers.

use std::collections::BTreeSet;

use super::error::ApiError;
use super::reply::{ReasoningFormat, ToolFormat};
use super::tools::Tools;

/// Properties of the model's chats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatFeatures {
    /// How the model writes tool calls; `None`: not known, or not to be read.
    pub tool_format: Option<ToolFormat>,
    /// How the model writes its reasoning; `None`: it does not, or it is not to be read.
    pub reasoning_format: Option<ReasoningFormat>,
    /// Variables that the chat template reads.
    pub variables: BTreeSet<String>,
}

impl ChatFeatures {
    /// Refuses tools that the model would not see, or whose calls could not be read.
    ///
    /// # Errors
    /// 400, naming the reason.
    pub fn check_tools(&self, tools: &Tools) -> Result<(), ApiError> {
        if tools.list.is_empty() {
            return Ok(());
        }
        let reason = if !self.variables.contains("tools") {
            "the model's chat template does not write them"
        } else if self.tool_format.is_none() {
            "the format of the model's tool calls is not known; set target.tool_format in the server's \
             configuration"
        } else {
            return Ok(());
        };
        Err(ApiError::unsupported("tools", format!("tools are not supported: {reason}")))
    }
}
