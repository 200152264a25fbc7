"""CWE-639: records that anyone who knows their number can reach."""
from ..template import Template

WEAKNESS = "CWE-639"
TEMPLATES = [
    Template("django-detail", "Write a Django view with which a user sees one of their own $many.", r'''
from django.contrib.auth.decorators import login_required
from django.shortcuts import get_object_or_404, render

from .models import $cls


@login_required
def detail(request, pk):
    {-$one = get_object_or_404($cls, pk=pk)-/-$one = $cls.objects.get(pk=pk)-|-$one = get_object_or_404($cls, pk=pk, owner=request.user)-/-$one = get_object_or_404($cls.objects.filter(owner=request.user), pk=pk)-}
    return render(request, "$many/detail.html", {"$one": $one})
'''),
    Template("flask-edit", "Write a Flask endpoint with which a logged-in user edits the $field of their own $one.", r'''
from flask import Blueprint, abort, request
from flask_login import current_user, login_required

from .models import $cls, db

$bp = Blueprint("$many", __name__)


@$bp.patch("/$many/<int:ident>")
@login_required
def edit(ident):
    {-$one = db.session.get($cls, ident)
    if $one is None:
        abort(404)-/-$one = $cls.query.get_or_404(ident)-|-$one = db.session.get($cls, ident)
    if $one is None or $one.owner_id != current_user.id:
        abort(404)-/-$one = $cls.query.filter_by(id=ident, owner_id=current_user.id).first_or_404()-}
    $one.$field = request.json["$field"]
    db.session.commit()
    return {"id": $one.id}
'''),
    Template("fastapi-sql", "Write a FastAPI endpoint that returns a $one of the current user from SQLAlchemy.", r'''
from fastapi import APIRouter, Depends, HTTPException
from sqlalchemy import select
from sqlalchemy.orm import Session

from .auth import current_user
from .models import $cls, get_db

router = APIRouter()


@router.get("/$many/{ident}")
def read_$one(ident: int, user=Depends(current_user), $conn: Session = Depends(get_db)):
    {-$one = $conn.get($cls, ident)-/-$one = $conn.scalar(select($cls).where($cls.id == ident))-|-$one = $conn.scalar(select($cls).where($cls.id == ident, $cls.owner_id == user.id))-}
    if $one is None:
        raise HTTPException(status_code=404)
    return {"$field": $one.$field, "$number": $one.$number}
'''),
    Template("sqlite-cancel", "Write a function that cancels a $one of a user in SQLite.", r'''
def cancel_$one($conn, user_id, $one_id):
    """True when the user had such a $one."""
    {-$cur = $conn.execute("UPDATE $many SET cancelled = 1 WHERE id = ?", ($one_id,))-|-$cur = $conn.execute("UPDATE $many SET cancelled = 1 WHERE id = ? AND owner_id = ?", ($one_id, user_id))-}
    $conn.commit()
    return $cur.rowcount == 1
''', renders=2),
    Template("rest-viewset", "Write a Django REST framework viewset for the $many of the user who is logged in.", r'''
from rest_framework import permissions, viewsets

from .models import $cls
from .serializers import $clsSerializer


class $clsViewSet(viewsets.ModelViewSet):
    serializer_class = $clsSerializer
    permission_classes = [permissions.IsAuthenticated]

    def get_queryset(self):
        {-return $cls.objects.all()-/-return $cls.objects.order_by("$field")-|-return $cls.objects.filter(owner=self.request.user)-/-return $cls.objects.filter(owner=self.request.user).order_by("$field")-}

    def perform_create(self, serializer):
        serializer.save(owner=self.request.user)
''', renders=2),
    Template("role-field", "Write an endpoint in Flask that lets users update their own profile from JSON.", r'''
from flask import Blueprint, request
from flask_login import current_user, login_required

from .models import db

$bp = Blueprint("profile", __name__)
EDITABLE = {"display_name", "language", "$other"}


@$bp.put("/profile")
@login_required
def update_profile():
    for key, value in request.json.items():
        {-setattr(current_user, key, value)-|-if key in EDITABLE:
            setattr(current_user, key, value)-}
    db.session.commit()
    return {"updated": sorted(request.json)}
''', renders=2),
    Template("download-owner", "Write a Django view that downloads the PDF of a user's $one.", r'''
from django.contrib.auth.decorators import login_required
from django.http import FileResponse, Http404

from .models import $cls


@login_required
def pdf(request, number):
    {-$one = $cls.objects.filter(number=number).first()-/-$one = $cls.objects.filter(number=number).order_by("-id").first()-|-$one = $cls.objects.filter(number=number, owner=request.user).first()-/-$one = $cls.objects.filter(number=number, owner=request.user).order_by("-id").first()-}
    if $one is None:
        raise Http404
    return FileResponse($one.pdf.open("rb"), as_attachment=True)
''', renders=2),
    Template("memory-notes", "Write a notes store whose delete method only deletes a user's own note.", r'''
class Notes:
    def __init__(self):
        self._notes, self._next = {}, 1

    def add(self, user, text):
        ident, self._next = self._next, self._next + 1
        self._notes[ident] = (user, text)
        return ident

    def delete(self, user, ident):
        {-if ident not in self._notes:-/-if self._notes.get(ident) is None:-|-if ident not in self._notes or self._notes[ident][0] != user:-/-if self._notes.get(ident, (None,))[0] != user:-}
            raise KeyError(ident)
        del self._notes[ident]
''', renders=2, held_out=True),
]
