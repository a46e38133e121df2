//! `specserve man`: manual pages.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_mangen::Man;

use super::error::CliError;
use super::whole_file::write_whole;

/// Writes the manual pages of this program and of each command.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Directory for the pages, created if missing; man looks in man1 of each directory of its path.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Runs the command; `program` is the whole command line to describe.
///
/// # Errors
/// [`CliError::File`], [`CliError::Output`].
pub fn run(args: &ManArgs, program: Command, out: &mut impl Write) -> Result<(), CliError> {
    let pages = pages(program)?;
    for (name, page) in &pages {
        write_whole(&args.directory.join(name), page)?;
    }
    Ok(writeln!(out, "wrote {} pages to {}", pages.len(), args.directory.display())?)
}

/// File name and text of each page, the program's own first.
fn pages(program: Command) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let source = format!("{} {}", program.get_name(), program.get_version().unwrap_or_default());
    let commands = std::iter::once(&program).chain(program.get_subcommands());
    let page = |command: &Command| {
        let man = Man::new(command.clone()).source(source.as_str()).manual("User Commands");
        let mut page = Vec::new();
        man.render(&mut page)?;
        Ok((man.get_filename(), page))
    };
    commands.map(page).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;
    use crate::cli::testing::ScratchDirectory;

    #[test]
    fn each_command_has_a_page_that_describes_its_options() {
        let directory = ScratchDirectory::new();
        let args = ManArgs { directory: directory.path().join("share/man1") };
        let mut out = Vec::new();
        run(&args, Cli::command(), &mut out).expect("written");
        let page = |name: &str| {
            let path = args.directory.join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let own = page("specserve.1");
        let mut count = 1;
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let page = page(&format!("specserve-{name}.1"));
            assert!(page.contains(&format!(".TH specserve-{name} 1 ")), "{page}");
            let plain = |text: &str| text.replace('-', "\\-");
            assert!(page.contains(env!("CARGO_PKG_VERSION")), "{name} does not say its version");
            for option in command.get_opts().filter_map(|option| option.get_long()) {
                assert!(page.contains(&plain(option)), "the page of {name} lacks --{option}");
            }
            assert!(own.contains(&plain(name)), "the program's page lacks {name}");
            count += 1;
        }
        assert_eq!(std::fs::read_dir(&args.directory).expect("there").count(), count);
        assert!(String::from_utf8_lossy(&out).starts_with(&format!("wrote {count} pages to ")));
    }
}
