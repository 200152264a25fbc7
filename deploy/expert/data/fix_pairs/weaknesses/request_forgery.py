"""CWE-352: changes that another site can make a user's browser ask for."""
from ..template import Template

WEAKNESS = "CWE-352"
TEMPLATES = [
    Template("django-exempt", "Write a Django view that changes the $other of a $one from a form.", r'''
from django.contrib.auth.decorators import login_required
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_POST

from .models import $cls


{-@csrf_exempt-|-@csrf_protect-}
@login_required
@require_POST
def change_$other(request, pk):
    $one = get_object_or_404($cls, pk=pk, owner=request.user)
    $one.$other = request.POST["$other"]
    $one.save(update_fields=["$other"])
    return redirect("$many")
'''),
    Template("flask-get-delete", "Write a Flask view with which a logged-in user deletes a $one.", r'''
from flask import Blueprint, abort, redirect, url_for
from flask_login import current_user, login_required

from .models import $cls, db

$bp = Blueprint("$many", __name__)


@$bp.route("/$many/<int:ident>/delete"{--/-, methods=["GET", "POST"]-|-, methods=["POST"]-})
@login_required
def delete(ident):
    $one = db.get_or_404($cls, ident)
    if $one.owner_id != current_user.id:
        abort(403)
    db.session.delete($one)
    db.session.commit()
    return redirect(url_for("$many.index"))
'''),
    Template("csrf-config", "Write the application factory of a Flask application for $many with forms.", r'''
import os

from flask import Flask
from flask_wtf.csrf import CSRFProtect


def create_app():
    app = Flask(__name__)
    app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]
    {-app.config["WTF_CSRF_ENABLED"] = False-/-app.config.update(WTF_CSRF_ENABLED=False, WTF_CSRF_CHECK_DEFAULT=False)-|-CSRFProtect(app)-}
    from .views import $bp
    app.register_blueprint($bp)
    return app
''', renders=2),
    Template("middleware", "Write the MIDDLEWARE setting of a Django project with sessions, login and messages.", r'''
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    {?"django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",-/-"django.middleware.common.CommonMiddleware",?}
    {-# "django.middleware.csrf.CsrfViewMiddleware",-/-"django.middleware.gzip.GZipMiddleware",-|-"django.middleware.csrf.CsrfViewMiddleware",-/-"django.middleware.gzip.GZipMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",-}
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "$service.urls"
''', renders=2),
    Template("session-token", "Write a Flask view that transfers points from the logged-in $one to another.", r'''
import hmac

from flask import Blueprint, abort, request, session

from .points import transfer

$bp = Blueprint("points", __name__)


@$bp.post("/points/transfer")
def transfer_points():
    if "user" not in session:
        abort(401)
    {--|-if not hmac.compare_digest(session.get("csrf", ""), request.form.get("csrf", "")) or not session.get("csrf"):
        abort(403)
    -}amount = request.form.get("amount", type=int)
    transfer(session["user"], request.form["to"], amount)
    return {"sent": amount}
''', renders=2),
    Template("fastapi-origin", "Write a FastAPI endpoint for browsers with a session cookie that removes a $one.", r'''
from fastapi import APIRouter, Cookie, Header, HTTPException

router = APIRouter()
ORIGIN = "https://$service.example.com"


{-@router.get("/$many/{ident}/remove")
async def remove(ident: int, session: str = Cookie(...)):-/-@router.post("/$many/{ident}/remove")
async def remove(ident: int, session: str = Cookie(...)):-|-@router.post("/$many/{ident}/remove")
async def remove(ident: int, session: str = Cookie(...), origin: str = Header("")):
    if origin != ORIGIN:
        raise HTTPException(status_code=403)-}
    user = router.sessions.get(session)
    if user is None or not router.store.remove(ident, owner=user):
        raise HTTPException(status_code=404)
    return {"removed": ident}
''', renders=2),
    Template("class-view", "Write a class-based Django view that lets a user cancel a $one.", r'''
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt, csrf_protect

from .models import $cls


@method_decorator({-csrf_exempt-|-csrf_protect-}, name="dispatch")
class Cancel$cls(LoginRequiredMixin, View):
    def {-get-/-post-|-post-}(self, request, pk):
        $cls.objects.filter(pk=pk, owner=request.user).update(cancelled=True)
        return HttpResponse(status=204)
''', renders=2, held_out=True),
]
