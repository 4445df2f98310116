#!/usr/bin/env python3
"""What bash and zsh complete with the completions of our tools.

  completions_test.py IMAGETOOL POOLDUMP DOCTOR FIRSTTOUCHD

An interactive zsh in a pseudo-terminal gets a line and a Tab. What its completion
system proposes goes through compadd; a function in its place writes it down.
"""

import os
import pathlib
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAMS = [pathlib.Path(path).resolve() for path in sys.argv[1:5]]
TIME_LIMIT = 60  # Seconds; only against a shell that hangs.

RC = r"""
fpath=($ZDOTDIR/functions $fpath)
path=($ZDOTDIR/bin $path)
autoload -Uz compinit && compinit -D -u
compadd() {
  local -a names
  # With -O, -A or -D the caller wants the matches for itself.
  if [[ ${@[1,(i)(-|--)]} != *-[OAD]* ]]; then
    builtin compadd -O names "$@"
    print -rl -- $names >> $ZDOTDIR/proposed
  fi
  builtin compadd "$@"
}
# Ctrl-X ends the shell, after what was typed before.
leave() { exit }
zle -N leave
bindkey '^I' complete-word
bindkey '^X' leave
cd $ZDOTDIR/work
"""


class ZshTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        for name in ("functions", "bin", "work"):
            (self.folder / name).mkdir()
        for program in PROGRAMS:
            (self.folder / "bin" / program.name).symlink_to(program)
            text = subprocess.run([program, "completions", "zsh"], check=True,
                                  capture_output=True, text=True).stdout
            (self.folder / "functions" / f"_{program.name}").write_text(text)
        for name in ("guest.ftimg", "guest.wasm", "notes.txt"):
            (self.folder / "work" / name).touch()
        (self.folder / ".zshrc").write_text(RC)

    def proposals(self, line):
        """The words that zsh proposes for the last one of the line."""
        proposed = self.folder / "proposed"
        proposed.write_text("")
        pid, fd = pty.fork()
        if pid == 0:
            os.execve(shutil.which("zsh"), ["zsh", "-d", "-i"],
                      {"ZDOTDIR": str(self.folder), "TERM": "dumb",
                       "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"})
        os.write(fd, (line + "\t\x18").encode())
        limit = time.monotonic() + TIME_LIMIT
        while select.select([fd], [], [], max(0, limit - time.monotonic()))[0]:
            try:
                if not os.read(fd, 65536):
                    break
            except OSError:  # The other end is closed.
                break
        else:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)
        return sorted(set(proposed.read_text().split()))

    def test_commands(self):
        self.assertEqual(self.proposals("imagetool m"), ["manual", "map", "merge"])
        self.assertEqual(self.proposals("pooldump l"), ["layout", "live", "locate"])
        self.assertEqual(self.proposals("pooldump help liv"), ["live"])

    def test_options_of_the_command_alone(self):
        options = self.proposals("pooldump live 1 --")
        self.assertIn("--watch", options)
        self.assertNotIn("--machine", options)

    def test_values(self):
        self.assertEqual(self.proposals("imagetool map guest.ftimg --format="),
                         ["csv", "json", "text"])
        self.assertEqual(self.proposals("pooldump layout --supply="),
                         ["mappings-drop", "mappings-scan", "userfaultfd"])
        self.assertIn("kernel-calls", self.proposals("pooldump live 1 --sort="))

    def test_files_and_processes(self):
        self.assertIn("guest.ftimg", self.proposals("imagetool info gu"))
        self.assertTrue(any(word.isdigit() for word in self.proposals("pooldump live ")))

    def test_a_program_without_commands(self):
        self.assertIn("--time-limit", self.proposals("doctor --"))
        self.assertEqual(self.proposals("doctor --format="), ["json", "text"])
        self.assertIn("--keep-descriptors", self.proposals("firsttouchd --k"))
        self.assertEqual(self.proposals("firsttouchd --at-end="), ["leave", "poison"])
        self.assertIn("guest.ftimg", self.proposals("firsttouchd --image=gu"))


class BashTest(unittest.TestCase):
    def proposals(self, *words):
        program = next(p for p in PROGRAMS if p.name == words[0])
        quoted = " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            ["/bin/bash", "-euc",
             f"source <({program} completions bash); COMP_WORDS=({quoted}); "
             f"COMP_CWORD={len(words) - 1}; _{words[0]}; "
             "printf '%s\\n' ${COMPREPLY[@]+\"${COMPREPLY[@]}\"}"],
            check=True, capture_output=True, text=True)
        return sorted(done.stdout.split())

    def test_commands_options_and_values(self):
        self.assertEqual(self.proposals("pooldump", "l"), ["layout", "live", "locate"])
        self.assertEqual(self.proposals("pooldump", "live", "1", "--wa"), ["--watch"])
        self.assertEqual(self.proposals("pooldump", "live", "1", "--ma"), [])
        self.assertEqual(self.proposals("pooldump", "layout", "--supply", "=", "m"),
                         ["mappings-drop", "mappings-scan"])
        self.assertEqual(self.proposals("pooldump", "live", "--sort", "=", "kern"),
                         ["kernel-calls"])

    def test_processes(self):
        self.assertIn(str(os.getpid()), self.proposals("pooldump", "live", ""))

    def test_an_operand_has_its_place(self):
        self.assertEqual(self.proposals("pooldump", "map", "1", ""), [])
        self.assertEqual(self.proposals("pooldump", "help", "liv"), ["live"])
        # The values of options are no operands, whichever way they are written.
        for option in (["--pool", "=", "a"], ["--pool", "a"], ["--bytes"]):
            self.assertIn(str(os.getpid()), self.proposals("pooldump", "map", *option, ""))
            self.assertEqual(self.proposals("pooldump", "map", *option, "1", ""), [])

    def test_files(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "guest.ftimg").touch()
            for words in (["imagetool", "verify", "a", "b"], ["pooldump", "core"],
                          ["pooldump", "map", "1", "2", "--svg", "="]):
                self.assertEqual(self.proposals(*words, f"{folder}/g"),
                                 [f"{folder}/guest.ftimg"])

    def test_a_program_without_commands(self):
        self.assertEqual(self.proposals("doctor", "--ti"), ["--time-limit"])
        self.assertEqual(self.proposals("doctor", "help", "man"), ["manual"])
        self.assertEqual(self.proposals("doctor", "--format", "=", ""), ["json", "text"])
        self.assertEqual(self.proposals("firsttouchd", "--rep"), ["--replace"])
        self.assertEqual(self.proposals("firsttouchd", "--on-loss", "=", ""),
                         ["kill", "poison"])


if __name__ == "__main__":
    if not shutil.which("zsh"):
        print("SKIPPED ZshTest: there is no zsh here")
        del ZshTest
    unittest.main(argv=sys.argv[:1], verbosity=2)
