//! The agent against asyncssh and paramiko, two clients that nobody here wrote.
//!
//! `SOUK_TEST_PYTHON` names a Python that has both.

mod common;

use std::{fs, process::Command};

use common::{Agent, noise, skipped, text};

const MIB: usize = 1 << 20;

/// Runs a script with the agent's port, key and host key as arguments; false where there is no Python for it.
fn run(agent: &Agent, script: &str) -> bool {
    let Some(python) = std::env::var_os("SOUK_TEST_PYTHON") else {
        skipped(
            "needs python clients; SOUK_TEST_PYTHON names no Python with asyncssh and paramiko",
        );
        return false;
    };
    let output = Command::new(python)
        .args(["-c", script])
        .arg(agent.address().port().to_string())
        .arg(agent.identity())
        .arg(agent.dir().join("known_hosts"))
        .arg(agent.dir())
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    true
}

fn transfers_arrived(agent: &Agent) {
    let sent = fs::read(agent.dir().join("sent")).expect("read");
    assert!(fs::read(agent.home().join("there")).expect("arrived") == sent);
    assert!(fs::read(agent.dir().join("back")).expect("came back") == sent);
}

#[test]
fn asyncssh_needs_python_clients() {
    let Some(agent) = Agent::start() else { return };
    fs::write(agent.dir().join("sent"), noise(64 * MIB, 21)).expect("written");
    let script = r#"
import asyncio, asyncssh, sys
port, key, known, tmp = sys.argv[1:]
async def main():
    async with asyncssh.connect('127.0.0.1', int(port), username='souk', client_keys=[key], known_hosts=known, config=None) as conn:
        done = await conn.run('cat; echo err >&2; exit 9', input='through')
        assert (done.stdout, done.stderr, done.exit_status) == ('through', 'err\n', 9), done
        killed = await conn.run('kill -KILL $$')
        assert killed.exit_signal[0] == 'KILL', killed.exit_signal
        tty = await conn.run('stty size; tty', term_type='xterm', term_size=(111, 37))
        assert '37 111' in tty.stdout and '/dev/pts/' in tty.stdout, tty.stdout
        process = await conn.create_process('echo ready; read line; echo "got $line"; exec sleep 1000')
        assert await process.stdout.readline() == 'ready\n'
        process.stdin.write('hello\n')
        assert await process.stdout.readline() == 'got hello\n'
        process.send_signal('TERM')
        await process.wait()
        assert process.exit_signal[0] == 'TERM', process.exit_signal
        shell = await conn.create_process(term_type='xterm', term_size=(80, 24))
        shell.change_terminal_size(99, 44)
        shell.stdin.write('stty size; exit 3\n')
        out = await shell.stdout.read()
        await shell.wait()
        assert '44 99' in out and shell.exit_status == 3, (out, shell.exit_status)
        async with conn.start_sftp_client() as sftp:
            await sftp.put(tmp + '/sent', 'there')
            await sftp.get('there', tmp + '/back')
            assert (await sftp.stat('there')).size == 64 << 20
            await sftp.mkdir('d')
            await sftp.symlink('there', 'd/link')
            assert await sftp.readlink('d/link') == 'there'
            assert sorted(await sftp.listdir('d')) == ['.', '..', 'link'] or await sftp.listdir('d') == ['link']
            try:
                await sftp.stat('missing')
                raise SystemExit('a missing file was found')
            except asyncssh.SFTPNoSuchFile:
                pass
        listener = await conn.forward_remote_port('127.0.0.1', 0, '127.0.0.1', 1)
        assert listener.get_port() > 0
    try:
        await asyncssh.connect('127.0.0.1', int(port), username='souk', password='guess', client_keys=None, known_hosts=known, config=None)
        raise SystemExit('a password was accepted')
    except asyncssh.PermissionDenied:
        pass
asyncio.run(main())
"#;
    if run(&agent, script) {
        transfers_arrived(&agent);
    }
}

#[test]
fn paramiko_needs_python_clients() {
    let Some(agent) = Agent::start() else { return };
    fs::write(agent.dir().join("sent"), noise(64 * MIB, 22)).expect("written");
    let script = r#"
import paramiko, sys
port, key, known, tmp = sys.argv[1:]
client = paramiko.SSHClient()
client.load_host_keys(known)
client.connect('127.0.0.1', int(port), username='souk', key_filename=key, allow_agent=False, look_for_keys=False)
stdin, stdout, stderr = client.exec_command('cat; echo err >&2; exit 9')
stdin.write('through'); stdin.flush(); stdin.channel.shutdown_write()
assert stdout.read() == b'through' and stderr.read() == b'err\n'
assert stdout.channel.recv_exit_status() == 9
_, stdout, _ = client.exec_command('stty size; tty', get_pty=True)
said = stdout.read().decode()
assert '24 80' in said and '/dev/pts/' in said, said
shell = client.invoke_shell(term='xterm', width=90, height=30)
shell.send(b'stty size; exit 3\n')
said = b''
while True:
    data = shell.recv(4096)
    if not data: break
    said += data
assert b'30 90' in said and shell.recv_exit_status() == 3, said
sftp = client.open_sftp()
sftp.put(tmp + '/sent', 'there')
# Asks for the whole file before it reads the first answer.
sftp.get('there', tmp + '/back')
assert 'there' in sftp.listdir('.'), sftp.listdir('.')
sftp.chmod('there', 0o600)
assert sftp.stat('there').st_mode & 0o777 == 0o600
try:
    sftp.stat('missing'); raise SystemExit('a missing file was found')
except FileNotFoundError:
    pass
client.close()
stranger = paramiko.Transport(('127.0.0.1', int(port)))
stranger.connect()
try:
    stranger.auth_password('souk', 'guess'); raise SystemExit('a password was accepted')
except paramiko.BadAuthenticationType as error:
    assert error.allowed_types == ['publickey'], error.allowed_types
stranger.close()
"#;
    if run(&agent, script) {
        transfers_arrived(&agent);
    }
}
