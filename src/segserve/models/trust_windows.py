"""Who owns a file on Windows, by the operating system's own calls: Python's library cannot tell."""

from __future__ import annotations

import ctypes
import sys
from ctypes import wintypes
from pathlib import Path

assert sys.platform == "win32"

SE_FILE_OBJECT = 1
OWNER_SECURITY_INFORMATION = 1
TOKEN_QUERY = 8
TOKEN_USER = 1


class _TokenUser(ctypes.Structure):
    """TOKEN_USER of winnt.h: a pointer to a security identifier, and its attributes."""

    _fields_ = (("sid", ctypes.c_void_p), ("attributes", wintypes.DWORD))


def belongs_to_user(path: Path) -> bool:
    """Whether the user of this process owns a file.

    Raises:
        OSError: the file cannot be looked at.
    """
    advapi = ctypes.WinDLL("advapi32", use_last_error=True)
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.LocalFree.argtypes = [ctypes.c_void_p]
    advapi.EqualSid.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    owner, descriptor = ctypes.c_void_p(), ctypes.c_void_p()
    failed = advapi.GetNamedSecurityInfoW(
        wintypes.LPCWSTR(str(path)),
        SE_FILE_OBJECT,
        OWNER_SECURITY_INFORMATION,
        ctypes.byref(owner),
        None,
        None,
        None,
        ctypes.byref(descriptor),
    )
    if failed:
        raise ctypes.WinError(failed)
    try:
        user = _user(advapi, kernel)
        return bool(advapi.EqualSid(owner, _TokenUser.from_buffer(user).sid))
    finally:
        kernel.LocalFree(descriptor)


def _user(advapi: ctypes.WinDLL, kernel: ctypes.WinDLL) -> ctypes.Array[ctypes.c_char]:
    """This process's TOKEN_USER, with the identifier that it points to."""
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    kernel.CloseHandle.argtypes = [wintypes.HANDLE]
    advapi.OpenProcessToken.argtypes = [wintypes.HANDLE, wintypes.DWORD, ctypes.POINTER(wintypes.HANDLE)]
    advapi.GetTokenInformation.argtypes = [
        wintypes.HANDLE,
        ctypes.c_int,
        ctypes.c_void_p,
        wintypes.DWORD,
        ctypes.POINTER(wintypes.DWORD),
    ]
    token, size = wintypes.HANDLE(), wintypes.DWORD()
    if not advapi.OpenProcessToken(kernel.GetCurrentProcess(), TOKEN_QUERY, ctypes.byref(token)):
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        advapi.GetTokenInformation(token, TOKEN_USER, None, 0, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        if not advapi.GetTokenInformation(token, TOKEN_USER, content, size, ctypes.byref(size)):
            raise ctypes.WinError(ctypes.get_last_error())
        return content
    finally:
        kernel.CloseHandle(token)
