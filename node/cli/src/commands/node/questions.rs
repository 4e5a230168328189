//! What `souk node init` asks on a terminal: as little as a node needs.

use std::io::{self, BufRead, Write};

use souk_node::net::NodeAddress;

/// More nodes to meet than anybody needs.
const MAX_BOOTSTRAP: usize = 16;

const SELL: &str = "\
Do you want to sell this machine? Tenants run programs in sandboxes that share its kernel: who finds a hole in
the kernel is out, so agree only for a machine that holds nothing else. Without it the node forwards packets,
lets requesters in and relays.";

const MEET: &str = "\
Which nodes shall it meet first? Their operators know the addresses, which end in /p2p/ and a node id. Two or
three of different operators are best. One on a line; an empty line ends the list, and they can be added later.";

/// Somebody who is asked.
pub(super) struct Questions<I, O> {
    pub(super) input: I,
    pub(super) output: O,
}

impl<I: BufRead, O: Write> Questions<I, O> {
    /// Asks what was not said on the command line.
    ///
    /// # Errors
    /// Where there is no answer.
    pub(super) fn ask(
        &mut self,
        provider: &mut bool,
        bootstrap: &mut Vec<NodeAddress>,
    ) -> io::Result<()> {
        if !*provider {
            writeln!(self.output, "{SELL}")?;
            *provider = self.is_agreed("Sell it? [y/N] ")?;
        }
        if bootstrap.is_empty() {
            writeln!(self.output, "\n{MEET}")?;
            *bootstrap = self.addresses()?;
        }
        Ok(())
    }

    fn is_agreed(&mut self, question: &str) -> io::Result<bool> {
        loop {
            match self.answer(question)?.to_ascii_lowercase().as_str() {
                "y" | "yes" => return Ok(true),
                "" | "n" | "no" => return Ok(false),
                _ => writeln!(self.output, "yes or no?")?,
            }
        }
    }

    fn addresses(&mut self) -> io::Result<Vec<NodeAddress>> {
        let mut addresses: Vec<NodeAddress> = Vec::new();
        while addresses.len() < MAX_BOOTSTRAP {
            let answer = self.answer("node: ")?;
            if answer.is_empty() {
                break;
            }
            match answer.parse() {
                Ok(address) => addresses.push(address),
                Err(error) => {
                    let example = "/ip4/192.0.2.1/udp/4551/quic-v1/p2p/12D3KooW…";
                    writeln!(self.output, "that is none ({error}); for example {example}")?;
                }
            }
        }
        Ok(addresses)
    }

    fn answer(&mut self, question: &str) -> io::Result<String> {
        write!(self.output, "{question}")?;
        self.output.flush()?;
        let mut line = String::new();
        match self.input.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str =
        "/ip4/192.0.2.1/tcp/4551/p2p/12D3KooWMP7k13Ef2PGwdpaSB6pLry6GiZJdJc3jhU96xoxZBSzH";

    fn asked(answers: &str, provider: bool, known: &[&str]) -> io::Result<(bool, usize, String)> {
        let parse = |address: &&str| address.parse().expect("an address");
        let (mut provider, mut bootstrap) = (provider, known.iter().map(parse).collect());
        let mut output = Vec::new();
        let mut questions = Questions {
            input: answers.as_bytes(),
            output: &mut output,
        };
        questions.ask(&mut provider, &mut bootstrap)?;
        let output = String::from_utf8(output).expect("text");
        Ok((provider, bootstrap.len(), output))
    }

    #[test]
    fn an_empty_answer_sells_nothing_and_meets_nobody() {
        let (provider, nodes, said) = asked("\n\n", false, &[]).expect("answered");
        assert_eq!((provider, nodes), (false, 0));
        assert!(said.contains("share its kernel"), "{said}");
    }

    #[test]
    fn what_cannot_be_meant_is_asked_again() {
        let answers = format!("perhaps\nYes\nnowhere\n{NODE}\n{NODE}\n\n");
        let (provider, nodes, said) = asked(&answers, false, &[]).expect("answered");
        assert_eq!((provider, nodes), (true, 2));
        assert!(
            said.contains("yes or no?") && said.contains("that is none"),
            "{said}"
        );
    }

    #[test]
    fn what_was_said_on_the_command_line_is_not_asked() {
        let (provider, nodes, said) = asked("", true, &[NODE]).expect("nothing is read");
        assert_eq!((provider, nodes, said.as_str()), (true, 1, ""));
        asked("", false, &[NODE]).expect_err("without an answer nothing is made");
    }
}
