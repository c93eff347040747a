"""Ways out of a sandbox, each a program that prints "out" where it finds one, and what is seen instead.

Imports nothing of ours, so that it can be read by a process of another user. A program gets a few names:
PARENT (the pid of the process that owns the sandbox), PORT (of a server on loopback), SOCKET (a unix
socket), ABSTRACT (an abstract one) and SECRET (a file that its owner can read).
"""

from __future__ import annotations

# Each may say anything but "out"; where it is ended, by one of these kinds.
ESCAPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fork": ("import os\nif os.fork() == 0: os._exit(0)\nprint('out')", ("crashed",)),
    "vfork and exec": ("import os\nos.posix_spawn('/bin/true', ['true'], {})\nprint('out')", ("crashed",)),
    "exec": ("import os\nos.execv('/bin/echo', ['echo', 'out'])", ("crashed",)),
    "a shell": ("import os\nif os.system('true') == 0: print('out')", ("ok",)),
    "a subprocess": ("import subprocess\nsubprocess.run(['true'])\nprint('out')", ("crashed",)),
    "a daemon": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass\nprint('out')",
        ("crashed",),
    ),
    "a fork bomb": (
        "import os\nwhile True:\n    try: os.fork(); print('out')\n    except OSError: break",
        ("ok",),
    ),
    "clone by hand": (
        "import ctypes\nif ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0: print('out')",
        ("ok", "crashed"),
    ),
    "clone3 by hand": (
        "import ctypes\nb = ctypes.create_string_buffer(88)\nif ctypes.CDLL(None).syscall(435, b, 88) >= 0: print('out')",
        ("ok", "crashed"),
    ),
    "calls of the old kind": (
        "import ctypes\nif ctypes.CDLL(None).syscall(0x40000000 + 39) > 0: print('out')",
        ("ok", "crashed"),
    ),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 24))\nprint('out')", ("memory", "crashed")),
    "one large block": ("bytearray(1 << 44)\nprint('out')", ("memory",)),
    "mapped memory": ("import mmap\nmmap.mmap(-1, 1 << 36)\nprint('out')", ("memory", "crashed")),
    "hidden memory": ("import os\nos.memfd_create('x')\nprint('out')", ("crashed",)),
    "shared memory": (
        "import ctypes\nif ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600) >= 0: print('out')",
        ("ok",),
    ),
    "shared memory of files": ("open('/dev/shm/x', 'w').write('x')\nprint('out')", ("crashed",)),
    "pipes full of data": (
        "import os, fcntl\nr, w = os.pipe()\nfcntl.fcntl(w, 1031, 1 << 20)\nprint('out')",
        ("crashed",),
    ),
    "threads without end": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()\nprint('out')",
        ("memory", "crashed", "timeout"),
    ),
    "an endless loop": ("while True: pass\nprint('out')", ("timeout",)),
    "an endless loop with signals caught": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
        ("timeout",),
    ),
    "sleep": ("import time\ntime.sleep(60)\nprint('out')", ("timeout",)),
    "closed streams and on": ("import os\nos.close(1); os.close(2)\nwhile True: pass", ("timeout",)),
    "a flood": ("while True: print('x' * 4096)", ("output",)),
    "a flood of errors": ("import sys\nwhile True: sys.stderr.write('x' * 4096)", ("output",)),
    "files of the machine": ("open('/etc/passwd').read()\nprint('out')", ("crashed",)),
    "passwords": ("open('/etc/shadow').read()\nprint('out')", ("crashed",)),
    "the owner's file": ("open(SECRET).read()\nprint('out')", ("crashed",)),
    "a folder": ("import os\nos.listdir('/home'); os.listdir('/root')\nprint('out')", ("crashed",)),
    "a file through a link": ("import os\nos.symlink(SECRET, '/tmp/link')\nprint('out')", ("crashed",)),
    "a hard link": ("import os\nos.link(SECRET, '/tmp/link')\nprint('out')", ("crashed",)),
    "a new file": ("open('/tmp/metier-escape', 'w').write('x')\nprint('out')", ("crashed",)),
    "a full disk": ("f = open('/var/tmp/metier-escape', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", ("crashed",)),
    "the library": ("import os\nopen(os.__file__, 'a').write('x')\nprint('out')", ("crashed",)),
    "a folder of its own": ("import os\nos.mkdir('/tmp/metier-escape-d')\nprint('out')", ("crashed",)),
    "removing": ("import os\nos.unlink(SECRET)\nprint('out')", ("crashed",)),
    "renaming": ("import os\nos.rename(SECRET, SECRET + 'x')\nprint('out')", ("crashed",)),
    "cutting off": ("import os\nos.truncate(SECRET, 0)\nprint('out')", ("crashed",)),
    "changing rights": ("import os\nos.chmod(SECRET, 0o777)\nprint('out')", ("crashed",)),
    "proc": ("open('/proc/self/status').read()\nprint('out')", ("crashed",)),
    "its own memory as a file": ("open('/proc/self/mem', 'r+b')\nprint('out')", ("crashed",)),
    "memory of the owner": ("open(f'/proc/{PARENT}/mem', 'rb')\nprint('out')", ("crashed",)),
    "variables of the owner": ("open(f'/proc/{PARENT}/environ', 'rb').read()\nprint('out')", ("crashed",)),
    "variables": ("import os\nif 'METIER_SECRET' in os.environ: print('out')", ("ok",)),
    "trace": (
        "import ctypes\nl = ctypes.CDLL(None)\nif l.ptrace(16, PARENT, 0, 0) == 0 or l.ptrace(0, 0, 0, 0) == 0: print('out')",
        ("ok", "crashed"),
    ),
    "reading another process": (
        "import ctypes\nb = ctypes.create_string_buffer(16)\nif ctypes.CDLL(None).syscall(310, PARENT, b, 1, b, 1, 0) >= 0: print('out')",
        ("ok", "crashed"),
    ),
    "a signal to the owner": ("import os\nos.kill(PARENT, 0)\nprint('out')", ("crashed",)),
    "a signal to the parent": ("import os\nos.kill(os.getppid(), 9)\nprint('out')", ("crashed",)),
    "a signal to all": ("import os\nos.kill(-1, 9)\nprint('out')", ("crashed",)),
    "a signal to the group": ("import os\nos.killpg(0, 9)\nprint('out')", ("crashed",)),
    "a signal by a stream's owner": (
        "import fcntl, os\nfcntl.fcntl(0, 8, os.getppid())\nprint('out')",
        ("crashed",),
    ),
    "the network": ("import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)\nprint('out')", ("crashed",)),
    "loopback of the new kind": (
        "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_STREAM)\nprint('out')",
        ("crashed",),
    ),
    "a datagram": ("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nprint('out')", ("crashed",)),
    "a unix socket": (
        "import socket\nsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(SOCKET)\nprint('out')",
        ("crashed",),
    ),
    "an abstract socket": (
        "import socket\nsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect('\\0' + ABSTRACT)\nprint('out')",
        ("crashed",),
    ),
    "a pair of sockets": ("import socket\nsocket.socketpair()\nprint('out')", ("crashed",)),
    "streams that were left open": (
        "import os\nfor n in range(3, 1024):\n    try: os.fstat(n)\n    except OSError: continue\n    print('out', n)",
        ("ok",),
    ),
    "namespaces": ("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('out')", ("ok", "crashed")),
    "mounting": (
        "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('out')",
        ("ok", "crashed"),
    ),
    "becoming another": ("import os\nos.setuid(0) if os.getuid() else os.setuid(1)\nprint('out')", ("crashed",)),
    "a new root": ("import os\nos.chroot('/tmp')\nprint('out')", ("crashed",)),
    "more rights": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)\nprint('out')",
        ("crashed",),
    ),
    "rights of the owner": (
        "import resource\nresource.prlimit(PARENT, resource.RLIMIT_NOFILE, (8, 8))\nprint('out')",
        ("crashed",),
    ),
    "rings": (
        "import ctypes\nif ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0: print('out')",
        ("ok", "crashed"),
    ),
    "programs in the kernel": (
        "import ctypes\nif ctypes.CDLL(None).syscall(321, 0, ctypes.create_string_buffer(120), 72) >= 0: print('out')",
        ("ok", "crashed"),
    ),
    "faults": ("import ctypes\nif ctypes.CDLL(None).syscall(323, 0) >= 0: print('out')", ("ok", "crashed")),
    "keys": ("import ctypes\nif ctypes.CDLL(None).syscall(250, 0, -3, 1) >= 0: print('out')", ("ok", "crashed")),
    "devices": ("open('/dev/sda'); open('/dev/vda'); open('/dev/mem')\nprint('out')", ("crashed",)),
    "the terminal": ("import fcntl\nfcntl.ioctl(0, 0x5412, b'x')\nprint('out')", ("crashed",)),
    "a crash": ("import ctypes\nctypes.string_at(0)", ("crashed",)),
}
