"""The API's service for the second factor."""

from __future__ import annotations

from p2pnode.api.schema import FactorSecret, FactorView, RecoveryCodes
from p2pnode.secondfactor import SecondFactor


class GuardService:
    """`api.services.Guard` over the node's second factor."""

    def __init__(self, factor: SecondFactor) -> None:
        self._factor = factor

    async def show(self) -> FactorView:
        """Whether codes are asked for."""
        return FactorView(state=self._factor.state.value, recovery_left=self._factor.recovery_left)

    async def begin(self) -> FactorSecret:
        """Make a secret for a device."""
        secret, uri = self._factor.begin()
        return FactorSecret(secret=secret, uri=uri)

    async def confirm(self, code: str) -> RecoveryCodes:
        """Switch it on."""
        return RecoveryCodes(codes=self._factor.confirm(code))

    async def remove(self) -> FactorView:
        """Switch it off."""
        self._factor.remove()
        return await self.show()

    async def check(self, code: str) -> None:
        """That the asker has the device."""
        self._factor.check(code)
