//! Tokens that a model's files add to tokenizer.json.

use tokenizers::AddedToken;

use crate::protocol::TokenId;

/// Adds tokens, in ascending order of their ids, and gives those that the tokenizer has the
/// properties that the files say, as transformers does.
///
/// # Errors
/// If a token would get another id than its own: its embedding is at that row.
pub(super) fn add(
    tokenizer: &mut tokenizers::Tokenizer,
    tokens: &[(TokenId, AddedToken)],
) -> Result<(), String> {
    let known = tokenizer.get_added_tokens_decoder();
    let news = tokens.iter().filter(|(id, token)| known.get(id) != Some(token));
    let news: Vec<&(TokenId, AddedToken)> = news.collect();
    tokenizer.add_tokens(news.iter().map(|(_, token)| token.clone())).map_err(|error| error.to_string())?;
    for (id, token) in news {
        let found = tokenizer.token_to_id(&token.content);
        if found == Some(*id) {
            continue;
        }
        let content = &token.content;
        let found = found.map_or_else(|| "no token".to_owned(), |found| format!("token {found}"));
        return Err(format!(
            "{content:?} is to be token {id} but is {found} beside tokenizer.json; add it there, with its id"
        ));
    }
    Ok(())
}
