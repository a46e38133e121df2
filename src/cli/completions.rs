//! `specserve completions`: a completion script for a shell.

use std::io::Write;

use clap::{Args, Command};
use clap_complete::Shell;

use super::error::CliError;

/// Prints a script that completes this program's commands and options.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell that will source the script.
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command; `program` is the whole command line to complete.
///
/// # Errors
/// [`CliError::Output`].
pub fn run(args: &CompletionsArgs, mut program: Command, out: &mut impl Write) -> Result<(), CliError> {
    let name = program.get_name().to_owned();
    // clap_complete panics when its writer fails, so a closed pipe must not be its writer
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    Ok(out.write_all(&script)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn script(shell: Shell) -> String {
        let mut out = Vec::new();
        run(&CompletionsArgs { shell }, Cli::command(), &mut out).expect("a script");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn each_script_names_every_command_and_its_options() {
        type Spelling = fn(&str) -> String;
        let shells: [(Shell, Spelling); 3] = [
            (Shell::Bash, |name| format!("specserve,{name})")),
            (Shell::Zsh, |name| format!("\n'{name}:")),
            (Shell::Fish, |name| format!("-a \"{name}\"")),
        ];
        for (shell, spelled) in shells {
            let script = script(shell);
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(script.contains(&spelled(name)), "{shell} does not complete {name}");
                for option in command.get_opts().filter_map(|option| option.get_long()) {
                    assert!(script.contains(option), "{shell} does not complete {name} --{option}");
                }
            }
        }
    }
}
